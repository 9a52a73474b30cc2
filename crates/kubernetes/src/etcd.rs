//! Which part a member of etcd takes when its process starts: pure decisions, made anew at every start.
//!
//! A member's machine may come back without its disk, its data may be broken, somebody may have removed it, or the cluster may have grown. In all of
//! these cases the way back is the same: what is left of its data is set aside, its old entry is removed from the list of members, and it joins as a
//! learner, which has no vote until it has caught up. That is done only when a majority of the others says so in one voice (a linearizable list of
//! members cannot be had without one), so no acknowledged write is ever given up for it.
//!
//! A cluster is founded only when **every** member that it is to have says that it has no data. Were it enough to hear nobody who has some, two members
//! that lost their disks while the third is down would found an empty cluster under the old name, and the third would take its emptiness over.

use serde::Deserialize;

/// Failures in a row after which a member's data counts as broken, if others have it whole.
pub const FAILURES: u32 = 3;

/// An entry of the list of members, as etcd's JSON gateway gives it (`/v3/cluster/member/list`; numbers are texts there) and, with other names, its
/// peers (`/members`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Id; a text from the gateway, a number from peers.
    #[serde(rename = "ID", alias = "id", deserialize_with = "text_or_number")]
    pub id: String,
    /// Empty until it has started, when it was added later.
    pub name: String,
    /// Where its peers reach it.
    #[serde(rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    /// Where clients reach it; it says so itself at its first start, so an entry without them is one that never ran.
    #[serde(rename = "clientURLs")]
    pub client_urls: Vec<String>,
    /// Whether it has no vote.
    #[serde(rename = "isLearner")]
    pub is_learner: bool,
}

impl Member {
    /// Whether it has ever run.
    #[must_use]
    pub fn has_started(&self) -> bool {
        !self.client_urls.is_empty()
    }
}

fn text_or_number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Number(u64),
    }
    Ok(match Either::deserialize(from)? {
        Either::Text(text) => text,
        Either::Number(number) => number.to_string(),
    })
}

/// What a peer says that has no etcd running yet, or whose etcd has no quorum yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Voice {
    /// It has no data and waits as we do.
    NoData,
    /// Its etcd runs; these are the members that it knows, however old that may be.
    Runs(Vec<Member>),
    /// It does not answer, or says something else.
    Silent(String),
}

/// How the member stands before its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own<'a> {
    /// Its own peer URL.
    pub peer_url: &'a str,
    /// Whether there is data.
    pub has_data: bool,
    /// Failures in a row that were not somebody's signal.
    pub failures: u32,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Start with the data that is there.
    Run,
    /// Start as one of a list in which the member is already, but never ran.
    Take {
        /// Whether it will have a vote at once.
        learner: bool,
    },
    /// Leave what was, join as a learner.
    Join {
        /// The entry to be removed first.
        remove: Option<String>,
        /// Whether data has to be set aside.
        set_aside: bool,
        /// For people.
        why: &'static str,
    },
    /// Nobody speaks for a majority, and there is no data: ask everybody.
    Ask,
}

/// What follows from the list that a majority of the others agrees upon; `None` where there is none.
#[must_use]
pub fn part(own: Own<'_>, agreed: Option<&[Member]>) -> Part {
    let Some(members) = agreed else {
        return if own.has_data { Part::Run } else { Part::Ask };
    };
    let entry = members
        .iter()
        .find(|member| member.peer_urls.iter().any(|url| url == own.peer_url));
    match entry {
        None => Part::Join {
            remove: None,
            set_aside: own.has_data,
            why: if own.has_data {
                "it was removed from the cluster"
            } else {
                "the cluster does not know it"
            },
        },
        Some(_) if own.has_data && own.failures < FAILURES => Part::Run,
        Some(entry) if own.has_data => Part::Join {
            remove: Some(entry.id.clone()),
            set_aside: true,
            why: "etcd fails again and again on its data",
        },
        Some(entry) if entry.has_started() => Part::Join {
            remove: Some(entry.id.clone()),
            set_aside: false,
            why: "its data is lost",
        },
        Some(entry) => Part::Take {
            learner: entry.is_learner,
        },
    }
}

/// Whether a cluster may be founded: everybody else has been heard, and nobody has data in which this member ever took part. The error says whom to wait for.
///
/// # Errors
/// Who does not agree, and why.
pub fn may_found(own: Own<'_>, voices: &[(String, Voice)]) -> Result<(), String> {
    let mut waiting = Vec::new();
    for (name, voice) in voices {
        match voice {
            Voice::NoData => {}
            // One that heard everybody before we did has begun already.
            Voice::Runs(members) => {
                let entry = members
                    .iter()
                    .find(|member| member.peer_urls.iter().any(|url| url == own.peer_url));
                if !entry.is_some_and(|entry| !entry.has_started() && !entry.is_learner) {
                    waiting.push(format!("{name} has data, and no majority of members runs"));
                }
            }
            Voice::Silent(why) => waiting.push(format!("{name} does not say whether it has data ({why})")),
        }
    }
    if waiting.is_empty() {
        Ok(())
    } else {
        Err(waiting.join("; "))
    }
}

/// Entries that no instance stands for any more, among those that were ever there: what a machine left behind that was deleted when it could not say goodbye.
#[must_use]
pub fn forsaken<'a>(members: &'a [Member], instances: &[String]) -> Vec<&'a Member> {
    members
        .iter()
        .filter(|member| !member.peer_urls.iter().any(|url| instances.contains(url)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: &str = "https://10.0.1.4:2380";

    fn member(n: u64, started: bool) -> Member {
        Member {
            id: n.to_string(),
            name: format!("master-{n}"),
            peer_urls: vec![format!("https://10.0.1.{}:2380", n + 2)],
            client_urls: if started {
                vec![format!("https://10.0.1.{}:2379", n + 2)]
            } else {
                Vec::new()
            },
            is_learner: false,
        }
    }

    fn own(has_data: bool, failures: u32) -> Own<'static> {
        Own {
            peer_url: ME,
            has_data,
            failures,
        }
    }

    #[test]
    fn a_member_with_data_runs_unless_a_majority_knows_better() {
        let all = [member(0, true), member(1, true), member(2, true)];
        assert_eq!(part(own(true, 0), Some(&all)), Part::Run);
        assert_eq!(
            part(own(true, 99), None),
            Part::Run,
            "without a majority its data may be the last"
        );
        let removed = part(own(true, 0), Some(&all[..2]));
        assert!(
            matches!(
                removed,
                Part::Join {
                    remove: None,
                    set_aside: true,
                    ..
                }
            ),
            "{removed:?}"
        );
        let broken = part(own(true, FAILURES), Some(&all));
        assert!(
            matches!(&broken, Part::Join { remove: Some(id), set_aside: true, .. } if id == "2"),
            "{broken:?}"
        );
    }

    #[test]
    fn a_member_without_data_is_added_anew() {
        let all = [member(0, true), member(1, true), member(2, true)];
        let lost = part(own(false, 0), Some(&all));
        assert!(
            matches!(&lost, Part::Join { remove: Some(id), set_aside: false, .. } if id == "2"),
            "{lost:?}"
        );
        assert!(matches!(
            part(own(false, 0), Some(&all[..2])),
            Part::Join {
                remove: None,
                set_aside: false,
                ..
            }
        ));
        let begun = [member(0, true), member(1, true), member(2, false)];
        assert_eq!(part(own(false, 0), Some(&begun)), Part::Take { learner: false });
        assert_eq!(part(own(false, 0), None), Part::Ask);
    }

    #[test]
    fn a_cluster_is_founded_only_when_all_say_that_they_have_nothing() {
        let voice = |n: u64, voice: Voice| (format!("master-{n}"), voice);
        let fresh = [member(0, false), member(1, false), member(2, false)];
        let old = [member(0, true), member(1, true), member(2, true)];
        let none = voice(0, Voice::NoData);
        assert_eq!(
            may_found(own(false, 0), &[none.clone(), voice(1, Voice::NoData)]),
            Ok(())
        );
        assert_eq!(
            may_found(
                own(false, 0),
                &[none.clone(), voice(1, Voice::Runs(fresh.to_vec()))]
            ),
            Ok(()),
            "it was quicker"
        );
        let error = may_found(
            own(false, 0),
            &[none.clone(), voice(1, Voice::Silent("refused".to_owned()))],
        )
        .expect_err("silence is no agreement");
        assert!(error.contains("master-1") && error.contains("refused"), "{error}");
        let error = may_found(own(false, 0), &[none, voice(1, Voice::Runs(old.to_vec()))])
            .expect_err("it has our past");
        assert!(error.contains("master-1 has data"), "{error}");
    }

    #[test]
    fn the_gateways_list_is_read() {
        let text = r#"{"ID":"9372538179322589801","name":"m","peerURLs":["https://10.0.1.4:2380"],"clientURLs":["https://10.0.1.4:2379"],"isLearner":true}"#;
        let member: Member = serde_json::from_str(text).expect("a member");
        assert!(member.is_learner && member.has_started());
        let peer = r#"[{"id":10276657743932975437,"peerURLs":["https://10.0.1.4:2380"],"name":"m","clientURLs":["c"]}]"#;
        let peers: Vec<Member> = serde_json::from_str(peer).expect("what peers say");
        assert!(peers[0].id == "10276657743932975437" && !peers[0].is_learner);
        let added: Member =
            serde_json::from_str(r#"{"ID":"1","peerURLs":["https://10.0.1.4:2380"]}"#).expect("a member");
        assert!(!added.has_started() && added.name.is_empty());
        assert_eq!(forsaken(&[added], &["https://10.0.1.2:2380".to_owned()]).len(), 1);
    }
}
