//! Subjects of the bus (as BOSH names them) and the matching of NATS wildcards.

use stolos_base::ids::AgentId;

/// Where an agent listens.
#[must_use]
pub fn agent(id: AgentId) -> String {
    format!("agent.{id}")
}

/// Where a director process listens for all its replies.
#[must_use]
pub fn replies(process: uuid::Uuid) -> String {
    format!("director.{process}.>")
}

/// Where one request is answered.
#[must_use]
pub fn reply(process: uuid::Uuid, agent: AgentId, request: uuid::Uuid) -> String {
    format!("director.{process}.{agent}.{request}")
}

/// Where an agent's heartbeats go.
#[must_use]
pub fn heartbeat(id: AgentId) -> String {
    format!("hm.agent.heartbeat.{id}")
}

/// Where an agent's alerts go.
#[must_use]
pub fn alert(id: AgentId) -> String {
    format!("hm.agent.alert.{id}")
}

/// Where an agent says that its machine goes down in an orderly way.
#[must_use]
pub fn shutdown(id: AgentId) -> String {
    format!("hm.agent.shutdown.{id}")
}

/// Alerts of the director itself.
pub const DIRECTOR_ALERT: &str = "hm.director.alert";

/// The agent id at the end of a subject.
#[must_use]
pub fn last_agent(subject: &str) -> Option<AgentId> {
    subject.rsplit('.').next()?.parse().ok()
}

/// Whether a subject may be published to: no wildcard, no empty token, no space.
#[must_use]
pub fn is_concrete(subject: &str) -> bool {
    !subject.is_empty()
        && subject.split('.').all(|token| {
            !token.is_empty() && token != "*" && token != ">" && !token.contains(char::is_whitespace)
        })
}

/// NATS matching: `*` is one token, `>` one or more at the end.
#[must_use]
pub fn matches(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    let mut pattern = pattern.split('.').peekable();
    while let Some(token) = pattern.next() {
        match (token, subject.next()) {
            (">", Some(_)) => return pattern.peek().is_none(),
            ("*", Some(_)) => {}
            (literal, Some(other)) if literal == other => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

/// Whether everything that `inner` matches is matched by `outer` too: how a subscription is checked against a right.
#[must_use]
pub fn covers(outer: &str, inner: &str) -> bool {
    let mut inner = inner.split('.');
    let mut outer = outer.split('.').peekable();
    while let Some(token) = outer.next() {
        match (token, inner.next()) {
            (">", Some(_)) => return outer.peek().is_none(),
            ("*", Some(other)) if other != ">" => {}
            (literal, Some(other)) if literal == other => {}
            _ => return false,
        }
    }
    inner.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_as_in_nats() {
        for (pattern, subject, expected) in [
            ("agent.*", "agent.a", true),
            ("agent.*", "agent.a.b", false),
            ("director.>", "director.a.b.c", true),
            ("director.>", "director", false),
            ("director.*.a.*", "director.p.a.r", true),
            ("director.*.a.*", "director.p.b.r", false),
        ] {
            assert_eq!(matches(pattern, subject), expected, "{pattern} {subject}");
        }
        assert!(covers("director.>", "director.*.x.>"));
        assert!(covers("agent.*", "agent.*"));
        assert!(!covers("agent.a", "agent.*"));
        assert!(!covers("agent.*", "agent.>"));
    }
}
