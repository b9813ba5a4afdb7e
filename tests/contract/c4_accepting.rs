//! Accepting: backlogs, and descriptors that really run out.

use std::collections::VecDeque;
use std::net::TcpStream;

use tinylb::{BackendSet, EndReason, Server};
use tinylb_tests::*;

/// More than three turns accept.
const STORM: usize = 250;

#[test]
fn c4_2_a_storm_is_served_or_refused_to_the_last_client_though_no_further_event_tells_of_it() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let backend = TestBackend::echo("a");
    for backends in [set([("a", backend.addr)]), BackendSet::new()] {
        let is_empty = backends.is_empty();
        let server = Server::builder().backends(backends).build(listener_with_backlog(1024));
        let server = server.unwrap();
        let addr = server.local_addr().ip().unwrap();
        let mut clients: Vec<_> = (0..STORM).map(|_| connect(addr)).collect();

        let balancer = Balancer::of(server);

        for client in &mut clients {
            if is_empty {
                assert_aborted(client);
            } else {
                assert_eq!(read_tag(client), "a");
            }
        }
        let stats = balancer.stats();
        let refused = stats.refused.of(EndReason::NoBackend);
        assert_eq!(if is_empty { refused } else { stats.open }, STORM as u64);
    }
}

#[test]
fn c4_4_at_max_connections_clients_wait_in_the_backlog_and_are_served_as_pairs_close() {
    let backend = TestBackend::echo("a");
    let balancer = Balancer::with(Server::builder().max_connections(2), set([("a", backend.addr)]));
    let mut clients: VecDeque<_> = (0..6).map(|_| balancer.client()).collect();
    for accepted in [2, 4, 6] {
        read_tag(&mut clients[0]);
        read_tag(&mut clients[1]);
        assert_echo(&mut clients[0], b"still here");
        let stats = balancer.stats();
        assert_eq!((stats.open, stats.accepted), (2, accepted));
        // One pair closes in order, the other is aborted.
        drop(clients.pop_front());
        reset(clients.pop_front().unwrap());
    }
}

/// A balancer in a process of its own that has few descriptors left. A client and its backend take
/// one each.
#[cfg(target_os = "linux")]
mod scarce {
    use std::fs::File;
    use std::io::{self, BufRead, BufReader, Read, Write};
    use std::net::SocketAddr;
    use std::os::fd::AsRawFd;
    use std::process::{Child, ChildStdout, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    const SETTINGS: &str = "TINYLB_TEST_OF_SCARCITY";
    const PROGRAM: &str = "c4_accepting::scarce::balancer_with_few_descriptors";
    const MARK: &str = "#> ";

    struct Scarce {
        process: Child,
        answers: BufReader<ChildStdout>,
        addr: SocketAddr,
        _backend: TestBackend,
    }

    impl Scarce {
        #[track_caller]
        fn start(descriptors: usize, dial_limit: Duration) -> Self {
            let backend = TestBackend::echo("a");
            let settings = format!("{descriptors} {} {}", dial_limit.as_millis(), backend.addr);
            let mut process = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--ignored", "--nocapture", PROGRAM])
                .env(SETTINGS, settings)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let answers = BufReader::new(process.stdout.take().unwrap());
            let addr = ([0; 4], 0).into();
            let mut scarce = Self { process, answers, addr, _backend: backend };
            scarce.addr = scarce.answer().parse().unwrap();
            scarce
        }

        #[track_caller]
        fn wait_for(&mut self, stats: &str) {
            wait_for(stats, || (self.ask("stats") == stats).then_some(()));
        }

        #[track_caller]
        fn ask(&mut self, command: &str) -> String {
            writeln!(self.process.stdin.as_ref().unwrap(), "{command}").unwrap();
            self.answer()
        }

        #[track_caller]
        fn answer(&mut self) -> String {
            // The test harness has its own words to say, perhaps on the same line.
            let mut lines = self.answers.by_ref().lines().map(Result::unwrap);
            let answer = lines.find_map(|line| Some(line.split_once(MARK)?.1.to_owned()));
            answer.expect("the process has ended")
        }

        /// Uses next to no CPU time for a while. A loop that spins takes what it gets.
        #[track_caller]
        fn assert_at_rest(&self) {
            let ticks = || process::cpu_ticks_of(self.process.id());
            let before = ticks();
            std::thread::sleep(2 * SHORT);
            let used = ticks() - before;
            assert!(used <= 5, "used {used} of 40 ticks");
        }
    }

    impl Drop for Scarce {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    #[test]
    #[ignore = "no test by itself: `Scarce` starts it as a process of its own"]
    fn balancer_with_few_descriptors() {
        let Ok(settings) = std::env::var(SETTINGS) else { return };
        let words: Vec<&str> = settings.split(' ').collect();
        let (descriptors, backend) = (words[0].parse().unwrap(), words[2].parse().unwrap());
        let dial_limit = Duration::from_millis(words[1].parse().unwrap());
        // No other timer may do what the one of a pause has to.
        let builder = Server::builder().connect_timeout(dial_limit).dial_limit(dial_limit);
        let balancer = Balancer::with(builder, set([("a", backend)]));
        let nofile = rlimit::Resource::NOFILE;
        let hard = nofile.get_hard().unwrap();
        let spare: Vec<_> = (0..descriptors).map(|_| File::open("/dev/null").unwrap()).collect();
        let highest = spare.iter().map(|file| file.as_raw_fd()).max().unwrap();
        nofile.set(highest as u64 + 1, hard).unwrap();
        drop(spare);
        println!("{MARK}{}", balancer.addr);
        for command in io::stdin().lines().map_while(Result::ok) {
            if command == "room" {
                nofile.set(hard, hard).unwrap(); // without a word to the loop, which would wake it
                println!("{MARK}");
            } else {
                let stats = balancer.stats();
                let refused: Vec<_> = stats.refused.iter().collect();
                println!("{MARK}{} {} {refused:?}", stats.accepted, stats.open);
            }
        }
    }

    /// More clients than the standard library's listener has room for: the last handshakes are not
    /// even answered.
    const MORE_THAN_A_BACKLOG: usize = 128 + 12;

    /// A client whose handshake may take its time.
    fn begin_to_connect(addr: SocketAddr) -> socket2::Socket {
        let socket = bound_socket();
        socket.set_nonblocking(true).unwrap();
        let begun = socket.connect(&addr.into());
        assert!(begun.is_ok() || begun.unwrap_err().raw_os_error() == Some(115)); // EINPROGRESS
        socket
    }

    #[test]
    fn c4_3_with_a_full_backlog_emfile_rests_at_accept_and_at_dial_and_all_are_served_in_the_end() {
        rlimit::increase_nofile_limit(u64::MAX).unwrap();
        // With one descriptor more, a client is let in for which there is none to dial with.
        for (descriptors, let_in) in [(4, 2), (5, 3)] {
            let mut balancer = Scarce::start(descriptors, LONG);
            let mut served: VecDeque<_> = (0..2).map(|_| connect(balancer.addr)).collect();
            served.iter_mut().for_each(|client| assert_eq!(read_tag(client), "a"));
            let waiting: Vec<_> =
                (0..MORE_THAN_A_BACKLOG).map(|_| begin_to_connect(balancer.addr)).collect();
            wait_for("the backlog is full", || {
                waiting.iter().rev().take(3).all(|client| client.peer_addr().is_err()).then_some(())
            });
            balancer.wait_for(&format!("{let_in} 2 []"));
            balancer.assert_at_rest();

            drop(served.pop_front());
            balancer.wait_for(&format!("{} 2 []", let_in + 1));
            balancer.assert_at_rest();
            balancer.ask("room");

            for client in waiting {
                wait_for("its handshake", || client.peer_addr().ok());
                client.set_nonblocking(false).unwrap();
                set_io_timeouts(&client);
                assert_eq!(read_tag(&mut TcpStream::from(client)), "a");
            }
            assert_echo(&mut served[0], b"still here");
            balancer.wait_for(&format!("{} 1 []", 2 + MORE_THAN_A_BACKLOG));
        }
    }

    #[test]
    fn c4_3_a_client_for_which_no_descriptor_comes_is_refused_by_the_dial_limit() {
        let mut balancer = Scarce::start(5, SHORT);
        let mut clients = [connect(balancer.addr), connect(balancer.addr)];
        clients.iter_mut().for_each(|client| assert_eq!(read_tag(client), "a"));
        let start = Instant::now();

        assert_aborted(&mut connect(balancer.addr));

        assert!(start.elapsed() >= SHORT);
        balancer.wait_for("3 2 [(DialLimit, 1)]");
        clients.iter_mut().for_each(|client| assert_echo(client, b"still here"));
    }
}
