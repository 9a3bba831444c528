//! Users and groups of an image: `USER[:GROUP]` looked up in its `/etc/passwd` and `/etc/group` (C11).
//!
//! The meaning is Docker's, with every doubtful case an error instead of a guess: a number is digits only and
//! below 4294967295; a name is looked up as it is written; a line with a malformed number is as if it was not
//! there. Nothing that fails to parse ever becomes 0.

/// Longest passwd or group file.
pub(super) const MAX_FILE: usize = 1 << 20;
/// NGROUPS_MAX
const MAX_GROUPS: usize = 65_536;

/// Numbers of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
}

/// A user text that names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UserError {
    /// User or group is empty.
    #[error("user {0:?} has an empty part")]
    Empty(String),
    /// A number that is no id.
    #[error("id {0:?} is not in 0..=4294967294")]
    Range(String),
    /// Not in the image's /etc/passwd.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// Not in the image's /etc/group.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// In more groups than a process can have.
    #[error("user {0} is in more than {MAX_GROUPS} groups")]
    TooManyGroups(String),
}

/// A line of /etc/passwd.
struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// A line of /etc/group.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// Finds the numbers for `USER[:GROUP]`.
///
/// Without a group, it is the user's own from passwd (0 for a number that is not in it), and the user is in
/// every group that lists the name. With one, it is that group alone.
///
/// # Errors
/// [`UserError`].
pub(super) fn look_up(text: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, UserError> {
    let (user, group_text) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if user.is_empty() || group_text.is_some_and(str::is_empty) {
        return Err(UserError::Empty(text.to_owned()));
    }
    let number = id(user)?;
    let matches = |entry: &User<'_>| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == user.as_bytes(),
    };
    let entry = users(passwd).find(matches);
    let uid = match (number, &entry) {
        (Some(uid), _) => uid,
        (None, Some(entry)) => entry.uid,
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    if let Some(text) = group_text {
        let gid = match id(text)? {
            Some(gid) => gid,
            None => {
                let named = groups(group).find(|entry| entry.name == text.as_bytes());
                named.ok_or_else(|| UserError::NoGroup(text.to_owned()))?.gid
            }
        };
        return Ok(Identity { uid, gid, groups: Vec::new() });
    }
    let gid = entry.as_ref().map_or(0, |entry| entry.gid);
    let name = entry.map_or(&[][..], |entry| entry.name);
    let member =
        |group: &Group<'_>| !name.is_empty() && group.members.split(|&c| c == b',').any(|one| one == name);
    let groups: Vec<u32> = groups(group).filter(member).map(|group| group.gid).take(MAX_GROUPS + 1).collect();
    if groups.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups(user.to_owned()));
    }
    Ok(Identity { uid, gid, groups })
}

/// Home directory of a user; `/` where passwd has none that can be one (C13).
pub(super) fn home_of(uid: u32, passwd: &[u8]) -> String {
    let home = users(passwd).find(|user| user.uid == uid).map(|user| user.home);
    let text = home.and_then(|home| std::str::from_utf8(home).ok());
    match text.filter(|home| home.starts_with('/') && !home.contains(char::is_control)) {
        Some(home) => home.to_owned(),
        None => "/".to_owned(),
    }
}

/// A number, where the text is one: digits only.
fn id(text: &str) -> Result<Option<u32>, UserError> {
    if !text.bytes().all(|c| c.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id != u32::MAX => Ok(Some(id)),
        _ => Err(UserError::Range(text.to_owned())),
    }
}

fn field_id(field: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(field).ok().filter(|text| !text.is_empty())?;
    id(text).ok()?
}

fn users(passwd: &[u8]) -> impl Iterator<Item = User<'_>> {
    passwd.split(|&c| c == b'\n').filter_map(|line| {
        let mut fields = line.split(|&c| c == b':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (field_id(fields.next()?)?, field_id(fields.next()?)?);
        let home = fields.nth(1).unwrap_or_default();
        (!name.is_empty()).then_some(User { name, uid, gid, home })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    group.split(|&c| c == b'\n').filter_map(|line| {
        let mut fields = line.split(|&c| c == b':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = field_id(fields.next()?)?;
        (!name.is_empty()).then_some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:/bin/false\n\
        broken:x:zero:0::/:\nminus:x:-1:-1::/:\nhuge:x:4294967296:1::/:\nodd:x:50:50::no/home:\n";
    const GROUP: &[u8] = b"root:x:0:\nwww:x:33:\naudio:x:29:web,root\nvideo:x:44:webby,web\nbad:x::web\n";

    fn found(text: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
        look_up(text, PASSWD, GROUP).map(|identity| (identity.uid, identity.gid, identity.groups))
    }

    #[test]
    fn name_brings_its_group_and_memberships() {
        assert_eq!(found("web"), Ok((33, 33, vec![29, 44])));
    }

    #[test]
    fn number_that_passwd_knows_is_that_user() {
        assert_eq!(found("33"), Ok((33, 33, vec![29, 44])));
    }

    #[test]
    fn given_group_is_the_only_one() {
        assert_eq!(found("web:audio"), Ok((33, 29, vec![])));
        assert_eq!(found("1000:1000"), Ok((1000, 1000, vec![])));
    }

    #[test]
    fn c11_numbers_are_exact() {
        assert_eq!(found("1"), Ok((1, 0, vec![])));
        assert_eq!(found("2147483648"), Ok((2_147_483_648, 0, vec![])));
        assert_eq!(found("007"), Ok((7, 0, vec![])));
    }

    #[test]
    fn c11_what_is_no_id_or_name_is_an_error() {
        for bad in ["4294967295", "4294967296", "99999999999999999999", "1:4294967295"] {
            assert!(matches!(found(bad), Err(UserError::Range(_))), "{bad}");
        }
        for bad in ["", "1:", ":1", ":"] {
            assert!(matches!(found(bad), Err(UserError::Empty(_))), "{bad:?}");
        }
        for bad in ["+0", "-1", " 0", "0x0", "nobody", "broken", "minus", "huge"] {
            assert!(matches!(found(bad), Err(UserError::NoUser(_))), "{bad:?}");
        }
        assert!(matches!(found("1:bad"), Err(UserError::NoGroup(_))));
        assert!(matches!(found("1:1:1"), Err(UserError::NoGroup(_))));
    }

    #[test]
    fn c13_home_is_one_absolute_path() {
        assert_eq!(home_of(33, PASSWD), "/var/www");
        assert_eq!(home_of(50, PASSWD), "/");
        assert_eq!(home_of(4242, PASSWD), "/");
        assert_eq!(home_of(1, b"x:x:1:1::/a\x1bb:"), "/");
    }

    proptest! {
        #[test]
        fn any_files_and_text_give_a_result(text in ".{0,40}", passwd: Vec<u8>, group: Vec<u8>) {
            let _ = look_up(&text, &passwd, &group);
            prop_assert!(home_of(0, &passwd).starts_with('/'));
        }

        #[test]
        fn c11_only_text_that_says_zero_becomes_root(text in "[-+ 0-9a-z:]{0,12}") {
            if let Ok(identity) = look_up(&text, b"", b"") {
                let user = text.split(':').next().unwrap_or_default();
                prop_assert_eq!(Some(identity.uid), user.parse().ok());
            }
        }
    }
}
