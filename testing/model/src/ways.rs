//! The cases of the standard for each command. A run of random histories must cover them.

/// The name of a case.
pub type Way = &'static str;

macro_rules! ways {
    ($($name:ident = $text:literal;)*) => {
        $(pub(crate) const $name: Way = $text;)*

        /// Every case.
        pub const WAYS: &[Way] = &[$($name),*];
    };
}

ways! {
    UNIT_ATTENTION = "any: a unit attention is reported";
    SPC2_CONFLICT = "any: reserved by SPC-2's RESERVE";
    IN_UNKNOWN = "IN: unknown service action";
    IN_CUT = "IN: cut to the allocation length";
    READ_KEYS = "READ KEYS";
    READ_RESERVATION = "READ RESERVATION";
    REPORT_CAPABILITIES = "REPORT CAPABILITIES";
    READ_FULL_STATUS = "READ FULL STATUS";
    LIST_LENGTH = "OUT: list of a wrong length";
    OUT_UNKNOWN = "OUT: unknown service action";
    SCOPE_TYPE = "OUT: no scope or type";
    NOT_REGISTERED = "OUT: not registered";
    WRONG_KEY = "OUT: wrong key";
    SPEC_I_PT_ELSEWHERE = "OUT: SPEC_I_PT with another service action";
    REGISTER_WRONG_KEY = "REGISTER: wrong key";
    REGISTER_WRONG_KEY_ELSEWHERE = "REGISTER: ALL_TG_PT, wrong key at another target port";
    REGISTER_NOTHING = "REGISTER: not registered, no key";
    REGISTER = "REGISTER: a new registrant";
    CHANGE_KEY = "REGISTER: another key";
    UNREGISTER = "REGISTER: unregisters";
    SPEC_I_PT_MALFORMED = "REGISTER: SPEC_I_PT, malformed";
    SPEC_I_PT_REGISTERED = "REGISTER: SPEC_I_PT, already registered";
    SPEC_I_PT_KNOWN = "REGISTER: SPEC_I_PT, one of the listed is registered";
    SPEC_I_PT_NODE = "REGISTER: SPEC_I_PT, an iSCSI node without a port";
    SPEC_I_PT_REGISTERS = "REGISTER: SPEC_I_PT registers";
    IGNORE_NOTHING = "REGISTER AND IGNORE: not registered, no key";
    IGNORE_REGISTER = "REGISTER AND IGNORE: a new registrant";
    IGNORE_CHANGE_KEY = "REGISTER AND IGNORE: another key";
    IGNORE_UNREGISTER = "REGISTER AND IGNORE: unregisters";
    RESERVE = "RESERVE: reserves";
    RESERVE_AGAIN = "RESERVE: holds it already";
    RESERVE_OF_ANOTHER = "RESERVE: another holds it";
    RESERVE_OF_ANOTHER_TYPE = "RESERVE: holds one of another type";
    RELEASE = "RELEASE: releases";
    RELEASE_NOTHING = "RELEASE: nothing is reserved";
    RELEASE_OF_ANOTHER = "RELEASE: another holds it";
    RELEASE_OF_ANOTHER_TYPE = "RELEASE: holds one of another type";
    CLEAR = "CLEAR";
    PREEMPT_ZERO = "PREEMPT: no key, and not all registrants hold it";
    PREEMPT_SCOPE_TYPE = "PREEMPT: no scope or type for the new reservation";
    PREEMPT_UNKNOWN_KEY = "PREEMPT: no registrant has the key";
    PREEMPT_ALL = "PREEMPT: takes over from all registrants";
    PREEMPT_SELF = "PREEMPT: the holder's own reservation";
    PREEMPT_HOLDER = "PREEMPT: takes over from the holder";
    PREEMPT_OWN_KEY = "PREEMPT: the sender's own key";
    PREEMPT_SELF_OF_ALL = "PREEMPT: the sender's own key, one of all registrants";
    PREEMPT_SOME_OF_ALL = "PREEMPT: some of all registrants";
    PREEMPT_OTHERS = "PREEMPT: registrants that are not the holder";
    PREEMPT_UNRESERVED = "PREEMPT: registrants, nothing is reserved";
    ABORT_ALL = "PREEMPT AND ABORT: takes over from all registrants";
    ABORT_SELF = "PREEMPT AND ABORT: the holder's own reservation";
    ABORT_HOLDER = "PREEMPT AND ABORT: takes over from the holder";
    ABORT_OWN_KEY = "PREEMPT AND ABORT: the sender's own key";
    ABORT_SELF_OF_ALL = "PREEMPT AND ABORT: the sender's own key, one of all registrants";
    ABORT_SOME_OF_ALL = "PREEMPT AND ABORT: some of all registrants";
    ABORT_OTHERS = "PREEMPT AND ABORT: registrants that are not the holder";
    ABORT_UNRESERVED = "PREEMPT AND ABORT: registrants, nothing is reserved";
    MOVE = "REGISTER AND MOVE: to a new registrant";
    MOVE_TO_REGISTRANT = "REGISTER AND MOVE: to a registrant";
    MOVE_UNREGISTERING = "REGISTER AND MOVE: unregisters the sender";
    MOVE_OF_ANOTHER = "REGISTER AND MOVE: another holds it";
    MOVE_ZERO = "REGISTER AND MOVE: no key";
    MOVE_OF_ALL = "REGISTER AND MOVE: all registrants hold it";
    MOVE_NOTHING = "REGISTER AND MOVE: nothing is reserved";
    MOVE_MALFORMED = "REGISTER AND MOVE: malformed TransportID";
    MOVE_TO_ITSELF = "REGISTER AND MOVE: to the sender's own port";
    MOVE_TO_NO_PORT = "REGISTER AND MOVE: to a target port that does not exist";
    MOVE_TO_NODE = "REGISTER AND MOVE: to an iSCSI node without a port";
    REPLACE_NOTHING_LOST = "REPLACE LOST RESERVATION: nothing is lost";
    NEXUS_LOSS = "nexus loss";
    RESET = "reset";
    POWER_LOSS = "power loss: without APTPL";
    POWER_LOSS_APTPL = "power loss: with APTPL";
    SPC2_RESERVE = "SPC-2 RESERVE: reserves";
    SPC2_RESERVE_AGAIN = "SPC-2 RESERVE: has it already";
    SPC2_RESERVED_BY_ANOTHER = "SPC-2 RESERVE: another has it";
    SPC2_REGISTRATIONS = "SPC-2: there are registrations";
    SPC2_WITHOUT_EFFECT = "SPC-2: without effect, has access by its registration (CRH)";
    SPC2_RELEASE = "SPC-2 RELEASE: releases";
    SPC2_RELEASE_NOTHING = "SPC-2 RELEASE: has nothing";
}

/// The case of PREEMPT AND ABORT for a case of PREEMPT.
pub(crate) fn aborting(way: Way) -> Way {
    match way {
        PREEMPT_ALL => ABORT_ALL,
        PREEMPT_SELF => ABORT_SELF,
        PREEMPT_HOLDER => ABORT_HOLDER,
        PREEMPT_OWN_KEY => ABORT_OWN_KEY,
        PREEMPT_SELF_OF_ALL => ABORT_SELF_OF_ALL,
        PREEMPT_SOME_OF_ALL => ABORT_SOME_OF_ALL,
        PREEMPT_OTHERS => ABORT_OTHERS,
        _ => ABORT_UNRESERVED,
    }
}
