//! scratch
#![allow(missing_docs)]
use pr_helper::descriptor::*;
use rustix::net::*;
use scsi_pr::*;
use std::io::{Read, Write};
use std::os::fd::*;
use std::os::unix::net::*;
use std::sync::Arc;
use std::time::*;
struct M;
impl PrManager for M {
    fn execute(&self, d: BorrowedFd<'_>, _c: Command<'_>) -> Result<Completion, Error> {
        assert!(rustix::io::ioctl_fionread(d).is_err());
        Ok(Completion::check(SenseCode::IO_PROCESS_TERMINATED))
    }
}
fn connect(p: &str) -> UnixStream {
    let mut s = UnixStream::connect(p).unwrap();
    s.read_exact(&mut [0; 4]).unwrap();
    s.write_all(&[0; 4]).unwrap();
    s
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let p = &a[2];
    match &a[1][..] {
        "ours" | "bare" => {
            let _ = std::fs::remove_file(p);
            let l = UnixListener::bind(p).unwrap();
            rustix::net::listen(&l, 4096).unwrap();
            if a[1] == "ours" {
                let stop = std::io::stdin();
                let m: Arc<dyn PrManager> = Arc::new(M);
                pr_helper::serve(l.into(), move |_| m.clone(), Default::default(), stop.as_fd()).unwrap().wait();
            } else {
                let (mut s, _) = l.accept().unwrap();
                s.write_all(&[0; 4]).unwrap();
                s.read_exact(&mut [0; 4]).unwrap();
                let mut b = [0; 16];
                loop {
                    let (n, f) = receive(&s, &mut b, RecvFlags::empty()).unwrap();
                    if n == 0 {
                        break;
                    }
                    let Passed::One(f) = f else { panic!() };
                    assert!(rustix::io::ioctl_fionread(&f).is_err());
                    drop(f);
                    rustix::net::send(&s, &[0; 104], SendFlags::empty()).unwrap();
                }
            }
        }
        "client" => {
            let idle: usize = a[3].parse().unwrap();
            let pause: u64 = a[4].parse().unwrap();
            let n: usize = a[5].parse().unwrap();
            let _i: Vec<_> = (0..idle).map(|_| connect(p)).collect();
            let s = connect(p);
            let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
            let mut t = vec![];
            let mut cdb = [0; 16];
            cdb[0] = 0x5e;
            cdb[8] = 8;
            for _ in 0..n {
                if pause > 0 {
                    std::thread::sleep(Duration::from_millis(pause));
                }
                let b = Instant::now();
                pr_helper::descriptor::send(&s, &cdb, null.as_fd(), SendFlags::empty()).unwrap();
                let mut r = [0; 104];
                let (_, got) = recv(&s, &mut r, RecvFlags::empty()).unwrap();
                assert_eq!(got, 104);
                t.push(b.elapsed());
            }
            t.sort();
            println!("p50 {:?} p90 {:?} p99 {:?}", t[n / 2], t[n * 9 / 10], t[n * 99 / 100]);
            if a.len() > 6 {
                std::thread::sleep(Duration::from_secs(3));
            }
        }
        _ => panic!(),
    }
}
