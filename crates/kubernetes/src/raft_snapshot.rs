//! The small files in which etcd keeps its list of members as of some entry of its log (`member/snap/*.snap`), and how a wrong one is known.
//!
//! Such a file says twice who is a member: in raft's own state, and as a copy of etcd's list. etcd 3.6 (seen with 3.6.16) writes one that contradicts itself when a
//! founding member starts again after another one was replaced: reading its log from the beginning, it takes the first entry that sets the cluster's version for a
//! downgrade and saves a file right away, with raft's state as it was long ago and the list as it is now. The *next* start believes that file. It then refuses
//! the replacements in the log as not fitting the list, and so its raft knows the old members only: it follows the leader, and drops what the leader answers
//! to its reads, because that comes from somebody unknown. All reads through this member hang, for as long as it lives, while it counts as well.
//!
//! Without the file etcd reads its log from an earlier one, or from the beginning, and is right. Fields are those of `snap.proto` and `raft.proto` of etcd 3.6.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

/// Whether a file's two lists of members differ; `None` when it cannot be read, which is for etcd to judge.
#[must_use]
pub fn contradicts_itself(file: &[u8]) -> Option<bool> {
    let snapshot = bytes(file, 2)?;
    let store: Store = serde_json::from_slice(bytes(snapshot, 1)?).ok()?;
    let listed: Option<BTreeSet<u64>> = store
        .root
        .child("0")?
        .child("members")?
        .children
        .iter()
        .flat_map(|children| children.keys())
        .map(|id| u64::from_str_radix(id, 16).ok())
        .collect();
    let state = bytes(bytes(snapshot, 2)?, 1)?;
    let mut known = BTreeSet::new();
    for (number, value) in Fields(state) {
        // Voters and learners.
        if let (1 | 2, Field::Number(id)) = (number, value) {
            known.insert(id);
        }
    }
    Some(known != listed?)
}

#[derive(Deserialize)]
struct Store {
    #[serde(rename = "Root")]
    root: Node,
}

#[derive(Deserialize)]
struct Node {
    #[serde(rename = "Children")]
    children: Option<serde_json::Map<String, Value>>,
}

impl Node {
    fn child(&self, name: &str) -> Option<Self> {
        let child = self.children.as_ref()?.get(name)?;
        Self::deserialize(child).ok()
    }
}

/// The first field of that number, which has bytes.
fn bytes(message: &[u8], wanted: u64) -> Option<&[u8]> {
    Fields(message).find_map(|(number, value)| match value {
        Field::Bytes(bytes) if number == wanted => Some(bytes),
        _ => None,
    })
}

/// The fields of a message in Protocol Buffers' encoding; they end where it is malformed.
struct Fields<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Field<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.number()?;
        let value = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(mut number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push(u8::try_from(number & 0x7F).expect("seven bits") | 0x80);
            number >>= 7;
        }
        bytes.push(u8::try_from(number).expect("seven bits"));
        bytes
    }

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [
            vec![number << 3 | 2],
            varint(content.len() as u64),
            content.to_vec(),
        ]
        .concat()
    }

    fn file(voters: &[u64], learners: &[u64], listed: &[u64]) -> Vec<u8> {
        let ids = |number: u8, ids: &[u64]| {
            let fields = ids.iter().map(|id| [vec![number << 3], varint(*id)].concat());
            fields.collect::<Vec<_>>().concat()
        };
        let state = [ids(1, voters), ids(2, learners), vec![5 << 3, 0]].concat();
        let metadata = [field(1, &state), vec![2 << 3, 9, 3 << 3, 2]].concat();
        let members: serde_json::Map<String, Value> = listed
            .iter()
            .map(|id| (format!("{id:x}"), serde_json::json!({"Path": "x"})))
            .collect();
        let store = serde_json::json!({"Root": {"Path": "/", "Children": {"0": {"Path": "/0", "Children": {
            "members": {"Path": "/0/members", "Children": members}, "version": {"Path": "/0/version"}}}, "1": {"Path": "/1"}}}});
        let snapshot = [field(1, store.to_string().as_bytes()), field(2, &metadata)].concat();
        [vec![1 << 3], varint(0xDEAD_BEEF), field(2, &snapshot)].concat()
    }

    #[test]
    fn voters_and_learners_are_those_of_the_list() {
        let (a, b, c) = (
            0x4e1e_dd97_606b_6dd0,
            0x0d6a_4e09_16e6_f9a8,
            0xd2d0_c3d7_f451_875b,
        );
        assert_eq!(contradicts_itself(&file(&[a, b], &[c], &[a, b, c])), Some(false));
        assert_eq!(contradicts_itself(&file(&[a, b], &[], &[a, c])), Some(true));
        assert_eq!(contradicts_itself(&file(&[a, b, c], &[], &[a, b])), Some(true));
    }

    #[test]
    fn what_is_malformed_is_not_judged() {
        let whole = file(&[1, 2, 3], &[], &[1, 2, 3]);
        for length in 0..whole.len() {
            assert_ne!(
                contradicts_itself(&whole[..length]),
                Some(true),
                "cut at {length}"
            );
        }
        assert_eq!(contradicts_itself(&[0xFF; 64]), None);
    }
}
