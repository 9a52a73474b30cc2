//! Persistent disks: real ones, in a mount namespace of the test's own.

mod common;

use std::process::Command;

use camino::Utf8PathBuf;
use common::Machine;
use serde_json::{Value, json};
use stolos_mbus::Call;
use stolos_mbus::settings::DiskHint;

/// Says that this program runs in a mount namespace of its own.
const INSIDE: &str = "STOLOS_TEST_INSIDE";

#[test]
fn init_program() {
    common::be_init_if_asked();
}

/// Runs the test of that name again where its mounts disturb nobody; whether this is that run.
#[expect(clippy::print_stderr, reason = "a test says why it is skipped")]
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let needed = [
        &["unshare", "--mount", "true"][..],
        &["losetup", "--find"],
        &["mkfs.ext4", "-V"],
    ];
    for command in needed {
        let worked = Command::new(command[0]).args(&command[1..]).output();
        if !worked.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: `{}` does not work here", command.join(" "));
            return false;
        }
    }
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    false
}

/// A loop device, which is let go of at the end.
struct Disk {
    device: String,
    file: Utf8PathBuf,
}

impl Disk {
    fn new(machine: &Machine, name: &str) -> Self {
        let file = machine.dir.path().join(name);
        fs_err::File::create_new(&file)
            .expect("a file")
            .set_len(64 << 20)
            .expect("room");
        let output = Command::new("losetup")
            .args(["--find", "--show", file.as_str()])
            .output()
            .expect("losetup");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Self { device, file }
    }

    fn hint(&self) -> DiskHint {
        serde_json::from_value(json!({"path": self.device})).expect("a hint")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A device that is still mounted goes when the namespace does.
        let _ = Command::new("losetup").args(["--detach", &self.device]).output();
    }
}

async fn add_and_mount(machine: &Machine, cid: &str, disk: &Disk) -> Result<Value, String> {
    let add = Call::AddPersistentDisk {
        cid: cid.into(),
        hint: disk.hint(),
    };
    assert_eq!(machine.call(add).await, Ok(json!({})));
    machine.call(Call::MountDisk(cid.into())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_are_formatted_once_migrated_and_found_again_after_a_boot() {
    if !inside("disks_are_formatted_once_migrated_and_found_again_after_a_boot") {
        return;
    }
    let mut machine = Machine::boot().await;
    let (one, two) = (Disk::new(&machine, "one"), Disk::new(&machine, "two"));
    let store = machine.paths.store();
    assert_eq!(add_and_mount(&machine, "disk-1", &one).await, Ok(json!({})));
    fs_err::write(store.join("data"), "precious").expect("room");
    assert_eq!(
        machine.call(Call::MountDisk("disk-1".into())).await,
        Ok(json!({})),
        "again"
    );
    assert_eq!(machine.call(Call::ListDisk).await, Ok(json!(["disk-1"])));

    // After a boot it is mounted before anything starts.
    machine.power_off();
    rustix::mount::unmount(store.as_std_path(), rustix::mount::UnmountFlags::empty()).expect("unmounted");
    assert!(!store.join("data").exists());
    machine.power_on();
    machine.start_agent().await;
    common::eventually("the boot", || machine.paths.booted().exists()).await;
    assert_eq!(
        fs_err::read_to_string(store.join("data")).expect("the data"),
        "precious"
    );

    // A second one lies beside it until the content is over.
    assert_eq!(add_and_mount(&machine, "disk-2", &two).await, Ok(json!({})));
    assert_eq!(
        machine.call(Call::ListDisk).await,
        Ok(json!(["disk-1", "disk-2"]))
    );
    assert!(!machine.paths.migration_target().join("data").exists());
    assert_eq!(machine.call(Call::MigrateDisk).await, Ok(json!({})));
    assert_eq!(machine.call(Call::ListDisk).await, Ok(json!(["disk-2"])));
    assert_eq!(
        fs_err::read_to_string(store.join("data")).expect("the data"),
        "precious"
    );
    assert!(
        machine.call(Call::MigrateDisk).await.is_err(),
        "there is no second disk"
    );
    assert_eq!(
        machine.call(Call::UnmountDisk("disk-1".into())).await,
        Ok(json!({"message": format!("Partition of {{\"path\":\"{}\"}} is not mounted", one.device)}))
    );
    assert_eq!(
        machine.call(Call::RemovePersistentDisk("disk-1".into())).await,
        Ok(json!({}))
    );
    assert_eq!(
        machine.call(Call::UnmountDisk("disk-2".into())).await,
        Ok(json!({"message": format!("Unmounted partition of {{\"path\":\"{}\"}}", two.device)}))
    );
    assert_eq!(machine.call(Call::ListDisk).await, Ok(json!([])));
    assert!(
        machine.call(Call::MountDisk("disk-1".into())).await.is_err(),
        "it was forgotten"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ours_is_never_formatted() {
    if !inside("what_is_not_ours_is_never_formatted") {
        return;
    }
    let machine = Machine::boot().await;
    let disk = Disk::new(&machine, "disk");
    let mut content = fs_err::read(&disk.file).expect("the disk");
    content[4096..4103].copy_from_slice(b"somedb\n");
    fs_err::write(&disk.file, &content).expect("written");
    let error = add_and_mount(&machine, "disk-1", &disk)
        .await
        .expect_err("left alone");
    assert!(
        error.contains("neither blank nor has a file system of ours"),
        "{error}"
    );
    assert_eq!(
        &fs_err::read(&disk.file).expect("the disk")[4096..4103],
        b"somedb\n"
    );

    // The same bytes behind a note that we were formatting: that attempt was cut off.
    let note = machine.paths.spec().with_file_name("formatting-disk-1");
    fs_err::write(&note, "").expect("the note");
    assert_eq!(
        machine.call(Call::MountDisk("disk-1".into())).await,
        Ok(json!({}))
    );
    assert!(!note.exists());
    assert_eq!(machine.call(Call::ListDisk).await, Ok(json!(["disk-1"])));
    machine
        .call(Call::UnmountDisk("disk-1".into()))
        .await
        .expect("unmounted");

    let add = |hint: Value| Call::AddPersistentDisk {
        cid: "disk-2".into(),
        hint: serde_json::from_value(hint).expect("a hint"),
    };
    let error = machine.call(add(json!({"lun": "1"}))).await.expect_err("no path");
    assert!(error.contains("its hint names no path"), "{error}");
}
