//! Room in etcd's database: alarms are told, the database is compacted and defragmented, NOSPACE is disarmed. What is right is decided in
//! [`stolos_kubernetes::etcd_room`]; here members are asked and told.
//!
//! A keeper runs beside each member and tells of its own member. That of the leader acts. Between looks there is no connection; while all is well a look is
//! two requests to the own member, which it answers without the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use camino::Utf8PathBuf;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use stolos_base::files;
use stolos_base::pki::Identity;
use stolos_kubernetes::etcd::Member;
use stolos_kubernetes::etcd_room::{self, Alarm, AlarmKind, Figures, MemberView, Next, View, WARN_PERCENT};

use crate::https::{Target, client_config};
use crate::member::{ANSWER, CHANGE, Ensemble, LEARNER, List, call, client_url};
use crate::note;

/// Pause between two looks.
const EVERY: Duration = Duration::from_secs(15);
/// Pause between two looks while an alarm is raised: the cluster takes no writes until it is disarmed.
const EVERY_WITH_ALARM: Duration = Duration::from_secs(3);
/// Steps in a row without a pause; each is a change that the next look sees.
const STEPS: usize = 16;
/// What a compaction may take: it waits until old revisions are gone from the database.
const COMPACT_LIMIT: Duration = Duration::from_secs(120);
/// What a defragmentation may take: it copies the database, some ten seconds for each GiB.
const DEFRAGMENT_LIMIT: Duration = Duration::from_secs(600);
/// A member that serves and does not answer so long is told. It is quiet meanwhile while it founds a cluster or is given the others' data.
const SILENT: Duration = Duration::from_secs(60);
/// What is told is written again after so long, so that whoever reads it sees that it is not left over.
const REFRESH: Duration = Duration::from_secs(60);
/// Pause between two looks of `etcd-ready`.
const READY_PAUSE: Duration = Duration::from_millis(15);
/// `etcd-ready` says what it waits for this often.
const REPORT: Duration = Duration::from_secs(10);

const NO_SPACE_NEXT: &str = "delete objects, or raise quota-backend-bytes of etcd in the cluster's Kubernetes profile; the alarm is disarmed by itself \
     when there is room";
const CORRUPT_NEXT: &str = "restore the cluster from a backup; this alarm is never disarmed by itself, because nobody but a person can say whose data is right";

#[derive(Args)]
pub(crate) struct Ready {
    /// Where clients reach the member
    #[arg(long, default_value = "https://127.0.0.1:2379")]
    url: String,
    /// PEM file of the CA of members and clients
    #[arg(long)]
    ca: Utf8PathBuf,
    /// PEM file of a client certificate
    #[arg(long)]
    cert: Utf8PathBuf,
    /// PEM file of its key
    #[arg(long)]
    key: Utf8PathBuf,
    /// Seconds to wait
    #[arg(long)]
    timeout: u64,
}

#[derive(Args)]
pub(crate) struct Keep {
    #[command(flatten)]
    ensemble: Ensemble,
    /// File for the agent that says what is not well
    #[arg(long)]
    report: Utf8PathBuf,
    /// Quota of the database in bytes, for members that do not say it themselves
    #[arg(long)]
    quota: u64,
}

/// What `/health` says of a member.
enum Condition {
    Ready,
    /// It takes part and its database is full: the update that brings a larger quota must not wait for room.
    Full,
}

impl Ready {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let identity = Identity {
            certificate: fs_err::read_to_string(&self.cert)?,
            key: fs_err::read_to_string(&self.key)?.into(),
        };
        let tls = client_config(&fs_err::read_to_string(&self.ca)?, Some(&identity))?;
        let (start, limit) = (Instant::now(), Duration::from_secs(self.timeout));
        let mut reported = Instant::now();
        loop {
            let problem = match condition(&tls, &self.url) {
                Ok(Condition::Ready) => return Ok(()),
                Ok(Condition::Full) => {
                    note(
                        "etcd takes part in its cluster; the alarm NOSPACE is raised, so writes are refused until there is room",
                    );
                    return Ok(());
                }
                Err(error) => error,
            };
            // Waiting mends nothing here.
            if problem.to_string().contains("CORRUPT") {
                return Err(problem.context(CORRUPT_NEXT));
            }
            let waited = start.elapsed();
            if waited >= limit {
                let what = format!("gave up after {} s waiting for etcd", waited.as_secs());
                return Err(problem.context(what));
            }
            if reported.elapsed() >= REPORT {
                note(&format!(
                    "stolos-job: waiting for etcd since {} s: {problem:#}",
                    waited.as_secs()
                ));
                reported = Instant::now();
            }
            sleep(READY_PAUSE);
        }
    }
}

fn condition(tls: &Arc<rustls::ClientConfig>, url: &str) -> anyhow::Result<Condition> {
    let ask = |query: &str| -> anyhow::Result<(u16, String)> {
        let target = Target::parse(&format!("{}/health{query}", url.trim_end_matches('/')))?;
        let answer = target.request(tls, None, ANSWER)?;
        Ok((
            answer.status,
            String::from_utf8_lossy(&answer.body).trim().to_owned(),
        ))
    };
    if ask("")?.0 == 200 {
        return Ok(Condition::Ready);
    }
    match ask("?exclude=NOSPACE")? {
        (200, _) => Ok(Condition::Full),
        (status, said) => bail!("it answered with status {status}: {said}"),
    }
}

/// Something that is not well, in the agent's form (ARCHITECTURE.md, Jobs).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Problem {
    kind: &'static str,
    severity: i32,
    text: String,
    next: &'static str,
}

impl Keep {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if let Some(parent) = self.report.parent() {
            fs_err::create_dir_all(parent)?;
        }
        let tls = self.ensemble.connect()?.tls;
        let mut keeper = Keeper {
            keep: self,
            tls,
            compacted: 0,
            defragmented: BTreeMap::new(),
            said: String::new(),
            heard: Instant::now(),
            written: None,
        };
        loop {
            sleep(keeper.pass());
        }
    }
}

struct Keeper {
    keep: Keep,
    tls: Arc<rustls::ClientConfig>,
    /// What this keeper did, for [`View`].
    compacted: u64,
    defragmented: BTreeMap<String, Instant>,
    /// What was noted last, so that a wait is one line.
    said: String,
    /// When the own member answered last.
    heard: Instant,
    written: Option<(Instant, Vec<Problem>)>,
}

/// One look at the own member and, where it leads, at the others.
struct Look {
    own: String,
    view: View,
    used_percent: u64,
}

impl Keeper {
    /// Looks, acts until there is nothing to do, tells; gives the pause until the next look.
    fn pass(&mut self) -> Duration {
        for _ in 0..STEPS {
            let look = match self.look() {
                Ok(Some(look)) => look,
                // A learner says nothing of members until it votes.
                Ok(None) => {
                    self.heard = Instant::now();
                    self.tell(Vec::new());
                    return EVERY;
                }
                Err(error) => {
                    self.say(&format!("etcd does not answer: {error:#}"));
                    if self.heard.elapsed() >= SILENT {
                        self.tell(vec![Problem {
                            kind: "silent",
                            severity: 2,
                            text: format!("etcd does not answer: {error:#}"),
                            next: "look at etcd's log on the machine; a lost majority of masters comes back with `stolos start-cluster` or a restore",
                        }]);
                    }
                    return EVERY;
                }
            };
            self.heard = Instant::now();
            self.tell(problems(&look));
            let has_alarm = !look.view.alarms.is_empty();
            let pause = if has_alarm { EVERY_WITH_ALARM } else { EVERY };
            if look.own != look.view.leader {
                self.say("");
                return pause;
            }
            match etcd_room::next(&look.view) {
                Next::Nothing => {
                    self.say("");
                    return pause;
                }
                Next::Wait(why) => {
                    self.say(&why);
                    return pause;
                }
                step => {
                    if let Err(error) = self.act(&look.view, &step) {
                        self.say(&format!("{error:#}"));
                        return pause;
                    }
                }
            }
        }
        EVERY_WITH_ALARM
    }

    /// `None` while the own member is a learner.
    fn look(&self) -> anyhow::Result<Option<Look>> {
        let url = client_url(self.keep.ensemble.address());
        let status = self.call(&url, "maintenance/status", &json!({}), ANSWER)?;
        let figures = self.figures(&status);
        let own = text(&status["header"]["member_id"]);
        let list = match self.call(
            &url,
            "cluster/member/list",
            &json!({"linearizable": false}),
            ANSWER,
        ) {
            Err(error) if error.to_string().contains(LEARNER) => return Ok(None),
            other => serde_json::from_value::<List>(other?)?,
        };
        // The status names alarms as the member knows them; asking for them is a proposal to all members.
        let names_alarms = status["errors"].to_string().contains("alarm");
        let alarms = if names_alarms {
            let answer = self.call(&url, "maintenance/alarm", &json!({"action": "GET"}), CHANGE)?;
            alarms(&answer)
        } else {
            Vec::new()
        };
        let leads = !own.is_empty() && figures.leader == own;
        let members = list.members.iter().map(|member| MemberView {
            figures: if member.id == own {
                Some(figures.clone())
            } else if leads {
                self.ask_other(member)
            } else {
                None
            },
            id: member.id.clone(),
            name: if member.name.is_empty() {
                format!("member {}", member.id)
            } else {
                member.name.clone()
            },
            is_learner: member.is_learner,
        });
        let view = View {
            members: members.collect(),
            leader: figures.leader.clone(),
            alarms,
            compacted: self.compacted,
            defragmented: self
                .defragmented
                .iter()
                .map(|(id, at)| (id.clone(), at.elapsed()))
                .collect(),
        };
        Ok(Some(Look {
            own,
            view,
            used_percent: figures.used_percent(),
        }))
    }

    fn ask_other(&self, member: &Member) -> Option<Figures> {
        let url = member.client_urls.first()?;
        let status = self.call(url, "maintenance/status", &json!({}), ANSWER).ok()?;
        Some(self.figures(&status))
    }

    fn figures(&self, status: &Value) -> Figures {
        let quota = number(&status["dbSizeQuota"]);
        Figures {
            leader: text(&status["leader"]),
            size: number(&status["dbSize"]),
            in_use: number(&status["dbSizeInUse"]),
            quota: if quota == 0 { self.keep.quota } else { quota },
            applied: number(&status["raftAppliedIndex"]),
            revision: number(&status["header"]["revision"]),
        }
    }

    fn act(&mut self, view: &View, step: &Next) -> anyhow::Result<()> {
        let own = client_url(self.keep.ensemble.address());
        let name = |id: &str| {
            let member = view.members.iter().find(|member| member.id == id);
            member.map_or_else(|| format!("member {id}"), |member| member.name.clone())
        };
        match step {
            Next::Nothing | Next::Wait(_) => {}
            Next::Compact(revision) => {
                let body = json!({"revision": revision.to_string(), "physical": true});
                match self.call(&own, "kv/compaction", &body, COMPACT_LIMIT) {
                    // Somebody else was faster.
                    Err(error) if error.to_string().contains("compacted") => {}
                    other => drop(other?),
                }
                self.compacted = *revision;
                note(&format!("stolos-job: compacted up to revision {revision}"));
            }
            Next::Defragment(id) => {
                // Whatever comes of it, it is not tried again at once.
                self.defragmented.insert(id.clone(), Instant::now());
                let url = self.url_of(&own, id)?;
                note(&format!("stolos-job: defragmenting {}", name(id)));
                self.call(&url, "maintenance/defragment", &json!({}), DEFRAGMENT_LIMIT)
                    .with_context(|| format!("failed to defragment {}", name(id)))?;
            }
            Next::Lead(id) => {
                note(&format!("stolos-job: handing leadership to {}", name(id)));
                let body = json!({"targetID": id});
                self.call(&own, "maintenance/transfer-leadership", &body, CHANGE)
                    .with_context(|| format!("failed to hand leadership to {}", name(id)))?;
            }
            Next::Disarm(id) => {
                let body = json!({"action": "DEACTIVATE", "memberID": id, "alarm": "NOSPACE"});
                self.call(&own, "maintenance/alarm", &body, CHANGE)
                    .with_context(|| format!("failed to disarm NOSPACE of {}", name(id)))?;
                note(&format!(
                    "stolos-job: the alarm NOSPACE of {} is disarmed: there is room",
                    name(id)
                ));
            }
        }
        Ok(())
    }

    fn url_of(&self, own: &str, id: &str) -> anyhow::Result<String> {
        let list = self.call(
            own,
            "cluster/member/list",
            &json!({"linearizable": false}),
            ANSWER,
        )?;
        let list: List = serde_json::from_value(list)?;
        let member = list.members.into_iter().find(|member| member.id == id);
        member
            .and_then(|member| member.client_urls.into_iter().next())
            .with_context(|| format!("member {id} is not in the list any more"))
    }

    fn call(&self, url: &str, what: &str, body: &Value, limit: Duration) -> anyhow::Result<Value> {
        call(&self.tls, url, what, body, limit)
    }

    /// Notes what changed since it was noted last.
    fn say(&mut self, what: &str) {
        if self.said != what {
            if !what.is_empty() {
                note(&format!("stolos-job: {what}"));
            }
            what.clone_into(&mut self.said);
        }
    }

    fn tell(&mut self, problems: Vec<Problem>) {
        let is_told = self
            .written
            .as_ref()
            .is_some_and(|(at, told)| *told == problems && at.elapsed() < REFRESH);
        if is_told {
            return;
        }
        match files::write_json(&self.keep.report, &problems, 0o600) {
            Ok(()) => self.written = Some((Instant::now(), problems)),
            Err(error) => note(&format!(
                "stolos-job: `{}` cannot be written: {error}",
                self.keep.report
            )),
        }
    }
}

/// What is not well with the own member; the leader's keeper also tells of members that cannot tell themselves.
fn problems(look: &Look) -> Vec<Problem> {
    let view = &look.view;
    let leads = look.own == view.leader;
    let mut found = Vec::new();
    for alarm in &view.alarms {
        let member = view.members.iter().find(|member| member.id == alarm.member);
        let is_own = alarm.member == look.own;
        let is_mute = member.is_none_or(|member| member.figures.is_none());
        let is_ours_to_tell = is_own || (leads && is_mute);
        if !is_ours_to_tell {
            continue;
        }
        let whose = if is_own {
            String::new()
        } else {
            format!(
                " of {}",
                member.map_or("a member that is gone", |member| member.name.as_str())
            )
        };
        found.push(match alarm.kind {
            AlarmKind::NoSpace => Problem {
                kind: "alarm NOSPACE",
                severity: 1,
                text: format!(
                    "the alarm NOSPACE{whose} is raised: etcd refuses writes ({} % of its quota in use)",
                    look.used_percent
                ),
                next: NO_SPACE_NEXT,
            },
            AlarmKind::Corrupt => Problem {
                kind: "alarm CORRUPT",
                severity: 1,
                text: format!(
                    "the alarm CORRUPT{whose} is raised: members' data differ, and etcd refuses everything"
                ),
                next: CORRUPT_NEXT,
            },
        });
    }
    if view.alarms.is_empty() && look.used_percent >= WARN_PERCENT {
        found.push(Problem {
            kind: "nearly full",
            severity: 4,
            text: format!(
                "{} % of etcd's quota is in use; at 100 % it refuses writes",
                look.used_percent
            ),
            next: "delete objects, or raise quota-backend-bytes of etcd in the cluster's Kubernetes profile",
        });
    }
    found
}

fn alarms(answer: &Value) -> Vec<Alarm> {
    let listed = answer["alarms"].as_array().into_iter().flatten();
    listed
        .filter_map(|alarm| {
            let kind = match &alarm["alarm"] {
                Value::String(word) if word == "NOSPACE" => AlarmKind::NoSpace,
                Value::String(word) if word == "CORRUPT" => AlarmKind::Corrupt,
                _ => return None,
            };
            Some(Alarm {
                member: text(&alarm["memberID"]),
                kind,
            })
        })
        .collect()
}

/// The gateway writes 64-bit numbers as texts, and leaves out those that are 0.
fn number(value: &Value) -> u64 {
    match value {
        Value::String(digits) => digits.parse().unwrap_or(0),
        other => other.as_u64().unwrap_or(0),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}
