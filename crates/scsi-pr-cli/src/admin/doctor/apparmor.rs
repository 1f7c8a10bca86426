//! AppArmor and SELinux: the rules of a profile for a program, and denials in the text of logs. No I/O.

/// Whether the text of a profile lets its subject execute `program`.
///
/// It reads the rules for files that have `x`, `deny` rules included. Of `@{VARIABLE}` it assumes that it matches anything, so
/// that it rather finds no fault than a wrong one.
pub(super) fn may_execute(profile: &str, program: &str) -> bool {
    let (mut is_allowed, mut is_denied) = (false, false);
    for line in profile.lines() {
        let line = line.split('#').next().unwrap_or_default().trim().trim_end_matches(',');
        let (denies, rule) = match line.strip_prefix("deny ") {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        let rule = rule.strip_prefix("audit ").unwrap_or(rule).trim_start();
        let rule = rule.strip_prefix("file ").unwrap_or(rule).trim_start();
        if !rule.starts_with(['/', '@', '"', '{']) {
            continue;
        }
        let Some((path, permissions)) = rule.rsplit_once(char::is_whitespace) else { continue };
        // "PATH PUx -> PROFILE" names a transition.
        let (path, permissions) = match path.split_once("->") {
            Some((before, _)) => before.trim().rsplit_once(char::is_whitespace).unwrap_or((before, "")),
            None => (path, permissions),
        };
        if permissions.contains('x') && matches(path.trim().trim_matches('"').as_bytes(), program.as_bytes()) {
            is_denied |= denies;
            is_allowed |= !denies;
        }
    }
    is_allowed && !is_denied
}

/// Whether a pattern of AppArmor matches a path (apparmor.d(5)).
fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|skip| matches(rest, &path[skip..])),
        [b'*', rest @ ..] => {
            let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
            (0..=end).any(|skip| matches(rest, &path[skip..]))
        }
        [b'?', rest @ ..] => path.split_first().is_some_and(|(byte, after)| *byte != b'/' && matches(rest, after)),
        [b'@', b'{', rest @ ..] => {
            let end = rest.iter().position(|byte| *byte == b'}').map_or(rest.len(), |end| end + 1);
            (0..=path.len()).any(|skip| matches(&rest[end..], &path[skip..]))
        }
        [b'{', rest @ ..] => match rest.iter().position(|byte| *byte == b'}') {
            Some(end) => {
                let mut choices = rest[..end].split(|byte| *byte == b',');
                choices.any(|choice| matches(&[choice, &rest[end + 1..]].concat(), path))
            }
            None => false,
        },
        [b'[', rest @ ..] => match (rest.iter().position(|byte| *byte == b']'), path.split_first()) {
            (Some(end), Some((byte, after))) => {
                let (set, is_negated) = match &rest[..end] {
                    [b'^', set @ ..] => (set, true),
                    set => (set, false),
                };
                let mut ranges = set.windows(3).filter(|range| range[1] == b'-');
                let is_in = set.contains(byte) || ranges.any(|range| (range[0]..=range[2]).contains(byte));
                is_in != is_negated && matches(&rest[end + 1..], after)
            }
            _ => false,
        },
        [first, rest @ ..] => path.first() == Some(first) && matches(rest, &path[1..]),
    }
}

/// A denial of a path that concerns the helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// AppArmor refused a profile an operation.
    AppArmor { profile: String, operation: String, path: String },
    /// SELinux refused it.
    SeLinux { path: String },
}

/// The last denial of each kind in the lines of a log that name one of `paths`.
pub(super) fn denials(log: &str, paths: &[&str]) -> Vec<Denial> {
    let mut found = Vec::new();
    for line in log.lines() {
        let name = field(line, "name").or_else(|| field(line, "path")).unwrap_or_default();
        let denial = if line.contains("apparmor=\"DENIED\"") && paths.contains(&name) {
            Denial::AppArmor {
                profile: field(line, "profile").unwrap_or_default().to_owned(),
                operation: field(line, "operation").unwrap_or_default().to_owned(),
                path: name.to_owned(),
            }
        } else if line.contains("avc:  denied") {
            // A name in such a line has no directory.
            let is_of = |path: &&&str| **path == name || path.rsplit('/').next() == Some(name);
            match paths.iter().find(is_of) {
                Some(path) if !name.is_empty() => Denial::SeLinux { path: (*path).to_owned() },
                _ => continue,
            }
        } else {
            continue;
        };
        if !found.contains(&denial) {
            found.push(denial);
        }
    }
    found
}

/// The value of `NAME="VALUE"`.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let start = line.match_indices(name).map(|(start, _)| start).find(|start| {
        let begins = *start == 0 || line[..*start].ends_with(' ');
        begins && line[start + name.len()..].starts_with("=\"")
    })?;
    line[start + name.len() + 2..].split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rules in the form of libvirt's profile.
    const PROFILE: &str = "profile libvirtd /usr/{sbin,bin}/libvirtd flags=(attach_disconnected) {\n\
        \x20 capability kill,\n  /usr/bin/* PUx,\n  /usr/sbin/virtlogd pix, # comment\n  /{usr/,}lib/udev/scsi_id PUx,\n\
        \x20 /usr/{lib,lib64,lib/qemu,libexec}/xen-[0-9]*/bin/pygrub PUx,\n  audit deny /usr/bin/secret x,\n\
        \x20 /etc/** r,\n  /opt/a** Cx -> helper,\n  @{libexec}/vm x,\n}\n";

    #[test]
    fn rule_with_x_allows_the_programs_that_it_matches() {
        for (program, expected) in [
            ("/usr/bin/qemu-pr-helper", true),
            ("/usr/sbin/virtlogd", true),
            ("/lib/udev/scsi_id", true),
            ("/usr/lib/udev/scsi_id", true),
            ("/usr/libexec/xen-4/bin/pygrub", true),
            ("/opt/a/b/c", true),
            ("/anything/vm", true),
            ("/usr/local/bin/qemu-pr-helper", false),
            ("/usr/libexec/scsi-pr/qemu-pr-helper", false),
            ("/etc/program", false),
            ("/usr/bin/sub/program", false),
            ("/usr/lib/xen-x/bin/pygrub", false),
        ] {
            assert_eq!(may_execute(PROFILE, program), expected, "{program}");
        }
        assert!(!may_execute("deny /usr/bin/a x,\n/usr/bin/* x,", "/usr/bin/a"));
    }

    #[test]
    fn denial_of_the_helper_is_found_once_in_a_log() {
        let paths = ["/usr/local/bin/qemu-pr-helper", "/run/qemu-pr-helper.sock"];
        let log = "audit: type=1400 apparmor=\"DENIED\" operation=\"exec\" profile=\"libvirtd\" \
                   name=\"/usr/local/bin/qemu-pr-helper\" pid=7 comm=\"rpc-libvirtd\" requested_mask=\"x\"\n";
        let other = "apparmor=\"DENIED\" operation=\"open\" profile=\"cupsd\" name=\"/etc/passwd\"\n";
        let avc = "type=AVC msg=audit(1.2:3): avc:  denied  { write } for  pid=9 comm=\"qemu-kvm\" \
                   name=\"qemu-pr-helper.sock\" scontext=system_u\n";
        let expected = [
            Denial::AppArmor {
                profile: "libvirtd".to_owned(),
                operation: "exec".to_owned(),
                path: paths[0].to_owned(),
            },
            Denial::SeLinux { path: paths[1].to_owned() },
        ];
        assert_eq!(denials(&[log, other, log, avc, "", "avc:  denied"].concat(), &paths), expected);
        assert_eq!(denials(other, &paths), []);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(
            profile in "([/*?@{}a,\\[\\]^ x-]{0,12}\n){0,4}", path in "/[a/]{0,8}", log: String,
        ) {
            let _ = may_execute(&profile, &path);
            let _ = denials(&format!("{log}apparmor=\"DENIED\" name={log}\" avc:  denied"), &[&path]);
        }
    }
}
