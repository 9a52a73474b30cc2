//! Users and groups as `/etc/passwd` and `/etc/group` have them. Read anew for each start: users may come and go.

use std::io;
use std::path::Path;

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

impl User {
    /// Looks a user up. Root is known even where there are no such files.
    pub(crate) fn find(name: &str) -> io::Result<Self> {
        let passwd = read(Path::new("/etc/passwd"))?;
        let group = read(Path::new("/etc/group"))?;
        if let Some(user) = parse(name, &passwd, &group) {
            return Ok(user);
        }
        if name == "root" {
            return Ok(Self {
                name: "root".to_owned(),
                uid: 0,
                gid: 0,
                groups: vec![0],
                home: "/root".to_owned(),
            });
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no user `{name}`"),
        ))
    }
}

fn read(path: &Path) -> io::Result<String> {
    match std::fs::read(path) {
        // A comment in another encoding must not hide the users.
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn parse(name: &str, passwd: &str, group: &str) -> Option<User> {
    let mut fields = passwd
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| (fields.next()? == name).then_some(fields))?;
    let (_, uid, gid, _, home) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    let gid = gid.parse().ok()?;
    let mut groups = vec![gid];
    for line in group.lines() {
        let mut fields = line.split(':');
        let (Some(id), Some(members)) = (fields.nth(2), fields.next()) else {
            continue;
        };
        if let Ok(id) = id.parse()
            && members.split(',').any(|member| member.trim() == name)
            && !groups.contains(&id)
        {
            groups.push(id);
        }
    }
    Some(User {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid,
        groups,
        home: home.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_its_groups() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nvcap:x:1000:1001:,,,:/home/vcap:/bin/bash\nbad line\n";
        let group = "root:x:0:\nvcap:x:1001:\nadm:x:4:syslog,vcap\nother:x:5:vcapx\n";
        let user = parse("vcap", passwd, group).expect("a user");
        assert_eq!((user.uid, user.gid, user.groups), (1000, 1001, vec![1001, 4]));
        assert_eq!(user.home, "/home/vcap");
        assert_eq!(parse("vca", passwd, group), None);
    }
}
