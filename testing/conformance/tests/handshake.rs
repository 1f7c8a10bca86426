//! The four bytes each way with which a connection begins.

use conformance::{Answer, Subject, against_each_helper, in_cdb, null};

against_each_helper!(
    features_are_sent_before_the_client_sends,
    unknown_features_close_the_connection_silently,
    client_that_sends_first_is_served,
    feature_word_byte_by_byte_is_taken,
    client_that_leaves_at_any_byte_disturbs_no_other,
);

fn features_are_sent_before_the_client_sends(subject: &Subject) {
    let helper = subject.serve();
    assert_eq!(helper.connect_silently().read::<4>(), [0; 4]);
}

fn unknown_features_close_the_connection_silently(subject: &Subject) {
    let helper = subject.serve();
    for word in [0x8000_0000_u32, 0x0100_0000, 2, u32::MAX] {
        let client = helper.connect_silently();
        client.read::<4>();
        client.send(&word.to_be_bytes());
        client.assert_closed();
    }
    assert_eq!(helper.connect().run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
}

fn client_that_sends_first_is_served(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect_silently();
    client.send(&[0; 4]);
    client.request(&in_cdb(0, 8), &[], null());
    assert_eq!(client.read::<4>(), [0; 4]);
    assert_eq!(client.answer(), Answer::io_process_terminated());
}

fn feature_word_byte_by_byte_is_taken(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect_silently();
    for _ in 0..4 {
        client.send(&[0]);
    }
    assert_eq!(client.read::<4>(), [0; 4]);
    assert_eq!(client.run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
}

fn client_that_leaves_at_any_byte_disturbs_no_other(subject: &Subject) {
    let helper = subject.serve();
    for count in 0..4 {
        let client = helper.connect_silently();
        client.send(&[0; 4][..count]);
        drop(client);
    }
    assert_eq!(helper.connect().run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
}
