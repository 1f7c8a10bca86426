//! What a client sees of [`pr_helper::serve`].

mod support;

use pr_helper::Limits;
use support::*;

#[test]
fn commands_are_answered() {
    let server = Server::start(Limits::default(), Echo);
    let mut client = server.client();
    for length in [0, 1, 8, 4096, 8192] {
        let answer = client.ask(&reserve_in(3, length), null());
        assert_eq!((answer.status, answer.data), (0, vec![3; length.into()]));
    }
    let answer = client.ask(&reserve_out(1, &[1, 2, 3]), null());
    assert_eq!((answer.status, &answer.sense[..5]), (2, &[0, 0, 0, 6, 0][..]));
    // QEMU's CLEANUP, which was not announced.
    assert_eq!(client.ask(&any_cdb(0xff, 0xffff), null()).status, 0);
}
