//! The instance's nft table: masquerading of what leaves the host. `stolos-hostd` keeps its balancing in the same table.

use std::io::Write as _;
use std::process::{Command, Stdio};

use stolos_base::Instance;

use crate::error::{Doing as _, Error, Result};

/// Gives a script to `nft`, which applies all of it or nothing.
///
/// # Errors
/// When `nft` is not there or refuses.
pub fn apply(script: &str) -> Result<()> {
    let what = || "program the packet filter with `nft`".to_owned();
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .doing(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        // When nft gives up early its words say more than a broken pipe.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().doing(what)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Program {
        what: what(),
        detail: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// The table with its masquerading: from our segments to anywhere but our segments.
fn base(instance: &Instance) -> String {
    let table = instance.nft_table();
    format!(
        "add table inet {table}
add set inet {table} segments {{ type ipv4_addr; flags interval; }}
add chain inet {table} leaving {{ type nat hook postrouting priority 100; policy accept; }}
flush chain inet {table} leaving
add rule inet {table} leaving ip saddr @segments ip daddr != @segments ip daddr != 224.0.0.0/4 masquerade
"
    )
}

/// Lets machines of a segment (`A.B.C.D/N`) reach what is outside.
pub(crate) fn add_segment(instance: &Instance, range: &str) -> Result<()> {
    let table = instance.nft_table();
    apply(&format!(
        "{}add element inet {table} segments {{ {range} }}\n",
        base(instance)
    ))
}

/// Takes a segment out again; one that is not in is as good as out.
pub(crate) fn remove_segment(instance: &Instance, range: &str) -> Result<()> {
    let table = instance.nft_table();
    // Adding it first makes the removal repeatable in one transaction.
    apply(&format!(
        "{0}add element inet {table} segments {{ {range} }}\ndelete element inet {table} segments {{ {range} }}\n",
        base(instance)
    ))
}

/// Removes the table with all in it.
pub(crate) fn remove_table(instance: &Instance) -> Result<()> {
    let table = instance.nft_table();
    apply(&format!("add table inet {table}\ndelete table inet {table}\n"))
}

/// Whether the table is there.
pub(crate) fn has_table(instance: &Instance) -> Result<bool> {
    let output = Command::new("nft")
        .args(["list", "tables", "inet"])
        .output()
        .doing(|| "list tables with `nft`".to_owned())?;
    let wanted = format!("table inet {}", instance.nft_table());
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .any(|line| line.trim() == wanted))
}
