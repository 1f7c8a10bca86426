//! A device is never taken for another, whatever happens on the machine.

use super::*;

/// An event on a machine.
#[derive(Clone, Debug)]
enum Event {
    /// A device is there, under this number, instead of what was. It is another disk.
    Appears(Number, What),
    /// A device goes.
    Disappears(Number),
    /// A device-mapper device gets another table; one without UUID may get one; an array is put together or taken apart.
    /// It is the same disk.
    Changes(Number, What),
    /// A command comes.
    Command(Number, Opcode),
    /// A command comes, and the kernel does not say which disk it is.
    CommandWithoutSequenceNumber(Number, Opcode),
}

/// Whether the same disk may become this.
fn may_become(before: What, after: What) -> bool {
    match (before, after) {
        (What::Volume { uuid, .. }, What::Volume { uuid: then, .. }) => then >= uuid,
        (What::Volume { uuid, .. }, What::Map) => !uuid,
        (What::Virtual | What::Array { .. }, What::Virtual | What::Array { .. }) => true,
        _ => false,
    }
}

fn events() -> impl Strategy<Value = Event> {
    let number = (0..3_u32).prop_map(|minor| Number { major: 7, minor });
    let what = prop::sample::select(&EVERYTHING[..]);
    let opcode = prop::sample::select(&[Opcode::ReserveIn, Opcode::ReserveOut, Opcode::Cleanup][..]);
    prop_oneof![
        2 => (number.clone(), what.clone()).prop_map(|(number, what)| Event::Appears(number, what)),
        1 => number.clone().prop_map(Event::Disappears),
        2 => (number.clone(), what).prop_map(|(number, what)| Event::Changes(number, what)),
        4 => (number.clone(), opcode.clone()).prop_map(|(number, opcode)| Event::Command(number, opcode)),
        1 => (number, opcode).prop_map(|(number, opcode)| Event::CommandWithoutSequenceNumber(number, opcode)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn device_is_never_taken_for_another_in_any_history(history in prop::collection::vec(events(), 1..60)) {
        let mut world = World::new();
        let recorded = Recorded::new(world.tree.sysfs());
        // The kernel counts disks, and no number comes twice.
        let mut disks: BTreeMap<Number, u64> = BTreeMap::new();
        let mut count = 0;
        let command = |opcode| all_commands().into_iter().find(|command| command.command().opcode() == opcode).unwrap();
        for event in history {
            match event {
                Event::Appears(number, what) => {
                    world.appear(number, what);
                    count += 1;
                    disks.insert(number, count);
                }
                Event::Disappears(number) => {
                    world.disappear(number);
                    disks.remove(&number);
                }
                Event::Changes(number, what) if may_become(world.what(number), what) => world.appear(number, what),
                Event::Changes(..) => {}
                Event::Command(number, opcode) => {
                    // There is no descriptor of a device that is not there.
                    let Some(sequence_number) = disks.get(&number) else { continue };
                    let chosen = recorded.choose(number, Some(*sequence_number), command(opcode).command());
                    prop_assert_eq!(chosen, expected(world.what(number), opcode));
                }
                Event::CommandWithoutSequenceNumber(number, opcode) => {
                    let chosen = recorded.choose(number, None, command(opcode).command());
                    prop_assert_eq!(chosen, expected(world.what(number), opcode));
                }
            }
        }
    }
}
