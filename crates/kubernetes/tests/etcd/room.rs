//! A database that is full: it used to stay so for good, and the update that raises its quota failed because a full member did not count as ready.

use crate::world::World;

const MIB: u64 = 1 << 20;

/// Three members with databases of 32 MiB, a keeper beside each, filled until etcd refuses; the keys are `fill-N`.
fn full(net: u8) -> Option<World> {
    let mut world = World::new(net, 3)?;
    world.quota = 32 * MIB;
    for n in 0..3 {
        world.start(n, 0);
    }
    world.write(0, "before");
    world.whole("before");
    let value = "x".repeat(930_000);
    let file = world.path("value");
    fs_err::write(&file, &value).expect("a file");
    let mut refused = false;
    for n in 0..60 {
        if let Err(error) = put_file(&world, &format!("fill-{n}"), &file) {
            assert!(error.contains("database space exceeded"), "{error}");
            refused = true;
            break;
        }
    }
    assert!(refused, "32 MiB hold no 60 values of 930 kB");
    for n in 0..3 {
        world.keep(n);
    }
    Some(world)
}

/// A value of this size does not fit on a command line.
fn put_file(world: &World, key: &str, file: &camino::Utf8Path) -> Result<(), String> {
    let input = fs_err::File::open(file).expect("a file");
    world
        .ctl_with(
            0,
            &["put", key],
            std::process::Stdio::from(std::fs::File::from(input)),
        )
        .map(drop)
}

fn writable(world: &World) {
    world.eventually("the alarm is disarmed", || {
        let alarms = world.ctl(1, &["alarm", "list"])?;
        if alarms.is_empty() { Ok(()) } else { Err(alarms) }
    });
    world.write(1, "after");
    world.whole("after");
    for n in 0..3 {
        world.eventually("keepers have nothing to tell", || match world.told(n).trim() {
            "[]" => Ok(()),
            told => Err(told.to_owned()),
        });
    }
}

#[test]
fn a_full_database_recovers_by_itself_when_its_quota_is_raised() {
    let Some(mut world) = full(7) else { return };
    world.eventually("the alarm is told", || {
        let told: String = (0..3).map(|n| world.told(n)).collect();
        if told.contains("alarm NOSPACE") && told.contains("raise quota-backend-bytes") {
            Ok(())
        } else {
            Err(told)
        }
    });
    // Nothing was deleted, so nobody may disarm it.
    let refused = world.ctl(0, &["put", "key", "too much"]);
    assert!(refused.is_err_and(|error| error.contains("database space exceeded")));
    // The update: one member after the other starts with another quota, and goes on to the next as soon as it takes part, full or not.
    world.quota = 128 * MIB;
    for n in 0..3 {
        world.kill(n);
        world.start(n, 0);
        let ready = world.ready(n, 120);
        assert!(
            ready.status.success(),
            "{}",
            String::from_utf8_lossy(&ready.stderr)
        );
    }
    writable(&world);
}

#[test]
fn a_full_database_recovers_by_itself_when_keys_are_deleted() {
    let Some(mut world) = full(8) else { return };
    // With one member away the others are a bare majority: nobody is defragmented, however full.
    world.kill(2);
    world.eventually("keys are deleted", || {
        world.ctl(0, &["del", "--prefix", "fill-"]).map(drop)
    });
    world.eventually("it waits for the third member", || {
        let said: String = (0..3).map(|n| world.keeper_said(n)).collect();
        if said.contains("master-2 to answer") {
            Ok(())
        } else {
            Err(said)
        }
    });
    let said: String = (0..3).map(|n| world.keeper_said(n)).collect();
    assert!(!said.contains("defragmenting"), "{said}");
    world.start(2, 0);
    writable(&world);
    let said: String = (0..3).map(|n| world.keeper_said(n)).collect();
    assert!(said.contains("compacted up to revision"), "{said}");
    assert!(said.contains("defragmenting"), "{said}");
    // The leader is never the one that answers nobody: it hands leadership on, or has lost it on a busy machine.
    for n in 0..3 {
        let said = world.keeper_said(n);
        assert!(!said.contains(&format!("defragmenting master-{n}")), "{said}");
    }
    for n in 0..3 {
        let size = fs_err::metadata(world.data(n).join("member/snap/db"))
            .expect("a database")
            .len();
        assert!(size < 8 * MIB, "member {n} has {size} bytes");
    }
}

/// Members' data differ, so nobody knows whose is right: only a person may say that all is well again.
#[test]
fn corrupt_is_told_and_never_disarmed() {
    let Some(mut world) = World::new(9, 3) else { return };
    for n in 0..3 {
        world.start(n, 0);
    }
    world.write(0, "before");
    world.whole("before");
    let id = world.member_id(1);
    world.raise(0, &id, "CORRUPT");
    for n in 0..3 {
        world.keep(n);
    }
    world.eventually("the alarm is told by its member", || {
        let told = world.told(1);
        if told.contains("alarm CORRUPT") {
            Ok(())
        } else {
            Err(told)
        }
    });
    let ready = world.ready(0, 60);
    assert!(!ready.status.success());
    let said = String::from_utf8_lossy(&ready.stderr).into_owned();
    assert!(
        said.contains("CORRUPT") && said.contains("restore the cluster"),
        "{said}"
    );
    world.eventually("the keeper has looked at it", || {
        let said: String = (0..3).map(|n| world.keeper_said(n)).collect();
        if said.contains("a person has to look") {
            Ok(())
        } else {
            Err(said)
        }
    });
    let alarms = world.ctl(0, &["alarm", "list"]).expect("a list");
    assert!(alarms.contains("CORRUPT"), "{alarms}");
}
