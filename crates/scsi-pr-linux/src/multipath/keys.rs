//! Which keys multipath.conf allows a map, as multipathd shows its configuration. No I/O.

use scsi_pr::Key;

/// `reservation_key` of multipath.conf, for one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AllowedKeys {
    /// It is not set: multipathd registers nothing on paths that appear or come back.
    None,
    /// `file`: every key, and multipathd keeps in a file which one it is.
    All,
    /// This one alone.
    Only(Key),
}

impl AllowedKeys {
    /// The keys that `configuration`, the answer to `show config local`, allows the map of `wwid`. Its own section in
    /// `multipaths` goes before `defaults`.
    pub(super) fn of(configuration: &str, wwid: &str) -> Self {
        let mut sections: Vec<&str> = Vec::new();
        let (mut defaults, mut own) = (Self::None, None);
        let (mut section_wwid, mut section_keys) = (None, None);
        for line in configuration.lines().map(str::trim) {
            if let Some(section) = line.strip_suffix('{') {
                sections.push(section.trim_end());
                (section_wwid, section_keys) = (None, None);
                continue;
            }
            let (keyword, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let value = value.trim().trim_matches('"');
            match (&sections[..], keyword) {
                (["multipaths", "multipath"], "}") if section_wwid == Some(wwid) => own = own.or(section_keys),
                (["multipaths", "multipath"], "wwid") => section_wwid = Some(value),
                (["multipaths", "multipath"], "reservation_key") => section_keys = Some(Self::read(value)),
                (["defaults"], "reservation_key") => defaults = Self::read(value),
                _ => {}
            }
            if keyword == "}" {
                sections.pop();
            }
        }
        own.unwrap_or(defaults)
    }

    fn read(value: &str) -> Self {
        if value == "file" {
            return Self::All;
        }
        let digits = value.strip_suffix(":aptpl").unwrap_or(value);
        digits.parse().map_or(Self::None, Self::Only)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WWID: &str = "36001405d0ea000000000000000000000";

    /// As multipathd 0.9.4 writes it.
    fn configuration(defaults: &str, own: &str) -> String {
        format!(
            "defaults {{\n\tverbosity 2\n\tprkeys_file \"/etc/multipath/prkeys\"\n{defaults}\tall_tg_pt \"no\"\n}}\n\
             blacklist {{\n\tdevnode \"!^(sd[a-z])\"\n\tdevice {{\n\t\tvendor \"SGI\"\n\t}}\n}}\n\
             devices {{\n\tdevice {{\n\t\tvendor \"LIO\"\n\t\tfeatures \"0\"\n\t}}\n}}\noverrides {{\n}}\n\
             multipaths {{\n\tmultipath {{\n\t\twwid \"3600other\"\n\t\treservation_key 0x99\n\t}}\n\
             \tmultipath {{\n\t\twwid \"{WWID}\"\n\t\talias \"mpatha\"\n{own}\t}}\n}}\n"
        )
    }

    fn allowed(defaults: &str, own: &str) -> AllowedKeys {
        AllowedKeys::of(&configuration(defaults, own), WWID)
    }

    #[test]
    fn the_maps_own_setting_goes_before_the_defaults() {
        let (file, key) = ("\treservation_key \"file\"\n", "\treservation_key 0x123abc\n");
        assert_eq!(allowed("", ""), AllowedKeys::None);
        assert_eq!(allowed(file, ""), AllowedKeys::All);
        assert_eq!(allowed(key, ""), AllowedKeys::Only(Key(0x12_3abc)));
        assert_eq!(allowed("", file), AllowedKeys::All);
        assert_eq!(allowed(file, key), AllowedKeys::Only(Key(0x12_3abc)));
        assert_eq!(allowed(key, file), AllowedKeys::All);
        assert_eq!(AllowedKeys::of(&configuration(file, ""), "3600other"), AllowedKeys::Only(Key(0x99)));
        assert_eq!(AllowedKeys::of(&configuration(file, ""), "3600third"), AllowedKeys::All);
    }

    #[test]
    fn a_key_is_read_in_each_of_its_forms() {
        for (value, expected) in [
            ("0x1", AllowedKeys::Only(Key(1))),
            ("\"0x0000000000123abc\"", AllowedKeys::Only(Key(0x12_3abc))),
            ("0xffffffffffffffff:aptpl", AllowedKeys::Only(Key(u64::MAX))),
            ("\"file\"", AllowedKeys::All),
            ("", AllowedKeys::None),
            ("none", AllowedKeys::None),
            ("0x11111111111111111", AllowedKeys::None),
        ] {
            assert_eq!(allowed(&format!("\treservation_key {value}\n"), ""), expected, "{value}");
        }
    }

    #[test]
    fn the_keyword_in_other_sections_is_ignored() {
        for text in [
            "",
            "fail\n",
            "reservation_key \"file\"\n",
            "devices {\n\tdevice {\n\t\treservation_key \"file\"\n\t}\n}\n",
            "multipaths {\n\treservation_key \"file\"\n}\n",
            "}\n}\ndevices {\n\tdefaults {\n\t\treservation_key \"file\"\n\t}\n}\n",
        ] {
            assert_eq!(AllowedKeys::of(text, WWID), AllowedKeys::None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(
            lines in prop::collection::vec(
                prop::sample::select(&[
                    "defaults {", "multipaths {", "multipath {", "{", "}", "wwid \"36001\"", "wwid",
                    "reservation_key \"file\"", "reservation_key 0x1", "reservation_key", "\"", "# alias",
                ][..]),
                0..20,
            )
        ) {
            let _ = AllowedKeys::of(&lines.join("\n"), "36001");
        }
    }
}
