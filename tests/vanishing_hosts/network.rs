//! Hosts that are network namespaces of this machine, each with a cable to one switch.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use nix::sched::{CloneFlags, setns};

use crate::frame::Mac;
use crate::skip;
use crate::switch::{Port, Switch, Tally, Weather};

/// Where `ip netns` keeps the namespaces that have names.
const NAMES: &str = "/var/run/netns";
/// What the names of ours begin with; the id of the process that made them follows.
const OURS: &str = "tinylb-";

type Attempt<T> = Result<T, String>;

/// A switch with some hosts, all gone when it and they are dropped.
pub(crate) struct Network {
    switch: Switch,
    _namespace: Namespace,
}

impl Network {
    /// Hosts of these names that know each other's addresses. Says why not if this machine makes none.
    #[track_caller]
    pub(crate) fn new<const N: usize>(
        names: [&str; N],
        weather: Weather,
    ) -> Option<(Self, [Arc<Host>; N])> {
        if let Some(obstacle) = obstacle() {
            skip::say(obstacle);
            return None;
        }
        Some(Self::make(names, weather).unwrap())
    }

    fn make<const N: usize>(names: [&str; N], weather: Weather) -> Attempt<(Self, [Arc<Host>; N])> {
        let namespace = Namespace::new("switch")?;
        let mut hosts = Vec::new();
        for (name, number) in names.into_iter().zip(1..) {
            hosts.push(Arc::new(Host::new(name, number, &namespace)?));
        }
        for host in &hosts {
            host.get_to_know(&hosts)?;
        }
        let ports = hosts.iter().map(|host| host.port()).collect();
        let switch = namespace
            .on(|| Switch::start(ports, weather))
            .map_err(|err| format!("a packet socket: {err}"))?;
        let Ok(hosts) = hosts.try_into() else { unreachable!("there is a host for each name") };
        Ok((Self { switch, _namespace: namespace }, hosts))
    }

    /// What became of the frames so far.
    pub(crate) fn tally(&self) -> &Tally {
        &self.switch.tally
    }
}

/// What keeps this machine from making hosts, asked once by making two.
fn obstacle() -> Option<&'static str> {
    static OBSTACLE: OnceLock<Option<String>> = OnceLock::new();
    let ask = || {
        clear_away_the_dead();
        Network::make(["one", "two"], Weather::fair()).err()
    };
    OBSTACLE.get_or_init(ask).as_deref()
}

/// Removes the namespaces of processes that were killed before they could.
fn clear_away_the_dead() {
    for entry in fs::read_dir(NAMES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(OURS).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = ip(&["netns", "del", &name], "");
        }
    }
}

/// A host: what is done [on](Self::on) it sees its network alone, and sockets made there stay there.
pub(crate) struct Host {
    pub(crate) ip: Ipv4Addr,
    mac: Mac,
    number: u8,
    is_cut: Arc<AtomicBool>,
    namespace: Namespace,
}

impl Host {
    fn new(name: &str, number: u8, switch: &Namespace) -> Attempt<Self> {
        let (ip, mac) = (Ipv4Addr::new(10, 77, 0, number), [2, 0, 0, 0, 0, number]);
        let host =
            Self { ip, mac, number, is_cut: Arc::default(), namespace: Namespace::new(name)? };
        let (port, host_name, mac) = (host.interface(), &host.namespace.name, host.mac_text());
        switch.configure(&format!(
            "link add {port} type veth peer name eth0 address {mac} netns {host_name}\nlink set {port} up\n"
        ))?;
        // A switch has no use for segments that a network card would cut into frames.
        host.namespace.configure(&format!(
            "link set lo up\nlink set eth0 gso_max_segs 1\nlink set eth0 up\naddr add {ip}/24 dev eth0\n"
        ))?;
        Ok(host)
    }

    /// Has it know where the others are without asking, so that one that vanishes is missed by nobody but TCP.
    fn get_to_know(&self, hosts: &[Arc<Self>]) -> Attempt<()> {
        let mut commands = String::new();
        for other in hosts.iter().filter(|other| other.number != self.number) {
            let _ = writeln!(
                commands,
                "neigh replace {} lladdr {} dev eth0 nud permanent",
                other.ip,
                other.mac_text()
            );
        }
        self.namespace.configure(&commands)
    }

    /// Has it ask where another is (by ARP), as it would outside of tests; `retry` is the time between questions, in ms.
    #[track_caller]
    pub(crate) fn forget(&self, other: &Self, retry: u32) {
        self.on(|| fs::write("/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms", retry.to_string()))
            .unwrap();
        self.namespace.configure(&format!("neigh del {} dev eth0\n", other.ip)).unwrap();
    }

    /// Cuts it off: frames from it and to it are swallowed, and nobody is told.
    pub(crate) fn unplug(&self) {
        self.is_cut.store(true, SeqCst);
    }

    pub(crate) fn plug_in(&self) {
        self.is_cut.store(false, SeqCst);
    }

    /// Does something on the host.
    #[track_caller]
    pub(crate) fn on<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.namespace.on(act)
    }

    /// A listener on a free port of the host.
    #[track_caller]
    pub(crate) fn listener(&self) -> TcpListener {
        self.on(|| TcpListener::bind((self.ip, 0))).unwrap()
    }

    /// A client on the host whose reads and writes fail rather than hang.
    #[track_caller]
    pub(crate) fn connect(&self, addr: SocketAddr) -> TcpStream {
        self.on(|| tinylb_tests::connect(addr))
    }

    fn interface(&self) -> String {
        format!("port{}", self.number)
    }

    fn port(&self) -> Port {
        Port { mac: self.mac, interface: self.interface(), is_cut: self.is_cut.clone() }
    }

    fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// A network namespace with a name that no other process has.
struct Namespace {
    name: String,
    entrance: File,
}

impl Namespace {
    fn new(purpose: &str) -> Attempt<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{OURS}{}-{}-{purpose}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        ip(&["netns", "add", &name], "")?;
        match File::open(Path::new(NAMES).join(&name)) {
            Ok(entrance) => Ok(Self { name, entrance }),
            Err(err) => {
                let _ = ip(&["netns", "del", &name], "");
                Err(format!("the namespace {name} that `ip` made: {err}"))
            }
        }
    }

    /// Runs commands of `ip`, one in each line.
    fn configure(&self, commands: &str) -> Attempt<()> {
        ip(&["-n", &self.name, "-batch", "-"], commands)
    }

    /// Does something on a thread that has entered it.
    #[track_caller]
    fn on<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let enter_and_act = || {
            setns(&self.entrance, CloneFlags::CLONE_NEWNET)
                .expect("the namespace is there as long as its entrance is");
            act()
        };
        let outcome = std::thread::scope(|scope| scope.spawn(enter_and_act).join());
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name], "");
    }
}

/// Runs `ip` to its end with this input; what it complained of is the error.
fn ip(args: &[&str], input: &str) -> Attempt<()> {
    let explain = |err: std::io::Error| format!("ip {}: {err}", args.join(" "));
    let mut child = Command::new("ip")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(explain)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has given up before it read all says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(explain)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "ip {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}
