//! The balancer at work, in less than 20 seconds: `cargo run --release --example demo`.
//!
//! All of it runs in this process: three backends, the balancer, and clients that ask, are answered and check each
//! byte of it. The story is told in [`play`]; what it says of times and numbers is measured in this run.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tinylb::{Applied, BackendSet, Control, Ejection, EndReason, Server, Stats, Summary, TcpBackend, Usage};

const CLIENTS: u8 = 18;
const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// The sizes of a client's question and a backend's answer, in bytes.
const QUESTION: usize = 64;
const ANSWER: usize = 16 * 1024;
/// How long a client thinks between an answer and its next question.
const THINKING: Duration = Duration::from_millis(40);
/// What takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(5);
const ANY_PORT: &str = "127.0.0.1:0";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match play() {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever was watching has left.
        Err(err) if err.downcast_ref().is_some_and(|err: &io::Error| err.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(err) => {
            let _ = writeln!(io::stderr(), "demo: {err}");
            ExitCode::FAILURE
        }
    }
}

/// The story, step by step.
fn play() -> Result<()> {
    let mut nodes = Vec::new();
    for name in NODES {
        nodes.push(Node::start(name, ANY_PORT.parse()?)?);
    }
    let mut set: BackendSet = nodes.iter().map(|node| (node.name, TcpBackend::new(node.addr))).collect();
    let listener = TcpListener::bind(ANY_PORT)?;
    let addr = listener.local_addr()?;
    // By default a backend that keeps failing is passed over for up to 30 seconds, which is longer than this story.
    let ejection = Ejection { max: Duration::from_secs(1), ..Ejection::default() };
    let balancer = Server::builder().backends(set.clone()).ejection(ejection).build(listener)?.spawn()?;
    let control = balancer.control();
    let tally = Arc::new(Tally::default());
    let mut stage = Stage::new(&control, &tally, &nodes);

    stage.step("clients spread over three backends")?;
    stage.say(format!("{CLIENTS} clients come to {addr}, ask and are answered, leave, and come again"))?;
    let clients: Vec<_> = (0..CLIENTS).map(|number| start_client(number, addr, &tally)).collect();
    stage.play_for(Duration::from_secs(3))?;

    stage.step("node-2 leaves the set while it is in use")?;
    stage.say("removing node-2 ...")?;
    stage.play_for(Duration::from_millis(600))?;
    stage.nodes[1].state = "removed";
    set.remove("node-2");
    let removal = stage.update(&set)?;
    let at_removal = control.stats()?.departed;
    stage.watch_clients_return(removal.0.closed)?;
    stage.play_for(Duration::from_millis(2500))?;
    let late_bytes = bytes(&control.stats()?.departed) - bytes(&at_removal);
    stage.say(format!("since it was applied, {late_bytes} bytes went to or came from node-2"))?;
    stage.play_for(Duration::from_millis(400))?;

    stage.step("node-2 comes back under another address")?;
    let replacement = Node::start("node-2", ANY_PORT.parse()?)?;
    stage.say(format!("adding node-2 at {} (it was at {}) ...", replacement.addr, nodes[1].addr))?;
    stage.play_for(Duration::from_millis(400))?;
    nodes[1] = replacement;
    stage.nodes[1] = Shown::new(&nodes[1]);
    set.insert("node-2", TcpBackend::new(nodes[1].addr));
    stage.update(&set)?;
    stage.watch("its first client came", |stats| open(stats, "node-2") > 0)?;
    stage.play_for(Duration::from_millis(2500))?;

    stage.step("node-3 dies, and nobody tells the balancer")?;
    stage.say("killing node-3 ...")?;
    stage.play_for(Duration::from_millis(400))?;
    stage.nodes[2].state = "dead";
    let killed = nodes[2].kill();
    stage.say(format!("node-3 is dead, and {killed} connections with it"))?;
    stage.watch_clients_return(killed)?;
    let is_ejected = |stats: &Stats| stats.backend("node-3").is_some_and(|node| node.ejected);
    stage.watch("after 3 failed dials it is passed over (ejected)", is_ejected)?;
    stage.play_for(Duration::from_millis(2200))?;
    let stats = control.stats()?;
    let dial_failures = stats.backend("node-3").map_or(0, |node| node.usage.dial_failures);
    let refused = stats.refused.total();
    stage.say(format!("{dial_failures} dials failed, each client went on to another node: {refused} refused"))?;

    stage.step("node-3 starts again, and nobody tells the balancer")?;
    let total = |stats: &Stats| stats.backend("node-3").map_or(0, |node| node.usage.total);
    let before = total(&stats);
    nodes[2] = Node::start("node-3", nodes[2].addr)?;
    stage.nodes[2] = Shown::new(&nodes[2]);
    stage.say("node-3 is alive again")?;
    stage.watch("the balancer found it, and it serves clients", |stats| total(stats) > before)?;
    stage.play_for(Duration::from_millis(2000))?;

    stage.step("the end: nobody new, and those who are served may finish")?;
    let open = control.stats()?.open;
    stage.say(format!("draining {open} connections ..."))?;
    let start = Instant::now();
    tally.lock().is_over = true;
    control.drain(PATIENCE)?;
    let summary = balancer.join()?;
    stage.say(format!("stopped after {}, not one connection left", millis(start.elapsed())))?;
    clients.into_iter().for_each(|client| drop(client.join()));
    drop(nodes);
    stage.finish()?;
    tell(&summary, &tally, removal, late_bytes, dial_failures)
}

/// What was seen. An error if it is not what was promised.
fn tell(
    summary: &Summary,
    tally: &Tally,
    (removal, took): (Applied, Duration),
    late_bytes: u64,
    dial_failures: u64,
) -> Result<()> {
    let tally = tally.lock();
    let (served, refused) = (summary.ended.total(), summary.refused.total());
    let in_order = summary.ended.of(EndReason::Finished);
    let slowest = tally.returns.iter().max().copied().unwrap_or_default();
    let mut out = io::stdout().lock();
    writeln!(out, "\nSeen in {:.1} s:", summary.ran_for.as_secs_f64())?;
    writeln!(out, "  connections  {served} served, {in_order} of them to an orderly end; {refused} refused")?;
    writeln!(out, "  answers      {} complete ({}), {} wrong", tally.answers, size(summary.bytes_down), tally.wrong)?;
    writeln!(
        out,
        "  removal      applied in {}: {} connections closed, {late_bytes} bytes to or from it after",
        millis(took),
        removal.closed
    )?;
    writeln!(out, "  failover     {dial_failures} failed dials, seen by no client")?;
    writeln!(
        out,
        "  clients      {} lost a connection; all were served again, the slowest after {}",
        tally.lost,
        millis(slowest)
    )?;
    match (tally.wrong, late_bytes, refused) {
        (0, 0, 0) => Ok(()),
        _ => Err("this is not what was promised".into()),
    }
}

// What happens.

/// A backend that answers questions. When it is killed or dropped, its listener and all its connections are gone.
struct Node {
    name: &'static str,
    addr: SocketAddr,
    shared: Arc<NodeShared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct NodeShared {
    is_over: AtomicBool,
    connections: Mutex<Vec<Weak<TcpStream>>>,
}

impl Node {
    fn start(name: &'static str, addr: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr)?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(NodeShared::default());
        let acceptor = std::thread::spawn({
            let shared = shared.clone();
            // The last byte of its name tells one node's answers from another's.
            move || accept(&listener, &shared, name.as_bytes()[name.len() - 1])
        });
        Ok(Self { name, addr, shared, acceptor: Some(acceptor) })
    }

    /// Ends it as a crash would. Returns how many connections it had.
    fn kill(&mut self) -> usize {
        self.shared.is_over.store(true, Ordering::SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = TcpStream::connect(self.addr); // wakes it
            let _ = acceptor.join();
        }
        let connections = std::mem::take(&mut *lock(&self.shared.connections));
        let live = connections.iter().filter_map(Weak::upgrade);
        live.filter(|connection| connection.shutdown(Shutdown::Both).is_ok()).count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

fn accept(listener: &TcpListener, shared: &NodeShared, mark: u8) {
    for connection in listener.incoming().flatten() {
        if shared.is_over.load(Ordering::SeqCst) {
            return;
        }
        let connection = Arc::new(connection);
        lock(&shared.connections).push(Arc::downgrade(&connection));
        std::thread::spawn(move || answer(&connection, mark));
    }
}

/// Answers question after question, until the connection ends.
fn answer(mut connection: &TcpStream, mark: u8) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let (mut question, answer) = ([0; QUESTION], [mark; ANSWER]);
    loop {
        connection.read_exact(&mut question)?;
        connection.write_all(&answer)?;
    }
}

/// What the clients have seen.
#[derive(Default)]
struct Tally(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    is_over: bool,
    answers: u64,
    wrong: u64,
    /// Connections that ended before their time.
    lost: usize,
    /// How long it took from there to the next answer.
    returns: Vec<Duration>,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        lock(&self.0)
    }
}

/// A client that comes, asks some questions, leaves, and comes again; at once if it was cut off.
fn start_client(number: u8, addr: SocketAddr, tally: &Arc<Tally>) -> JoinHandle<()> {
    let tally = tally.clone();
    let questions = 30 + u32::from(number) % 7 * 4; // so that they do not all leave together
    std::thread::spawn(move || {
        let mut lost_at = None;
        while !tally.lock().is_over {
            if visit(addr, questions, &tally, &mut lost_at).is_ok() || tally.lock().is_over {
                continue;
            }
            if lost_at.is_some() {
                std::thread::sleep(THINKING); // it was for nothing that it came again at once
            } else {
                tally.lock().lost += 1;
                lost_at = Some(Instant::now());
            }
        }
    })
}

fn visit(addr: SocketAddr, questions: u32, tally: &Tally, lost_at: &mut Option<Instant>) -> io::Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    let mut mark = None;
    let mut answer = vec![0; ANSWER];
    for _ in 0..questions {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[0; QUESTION])?;
        stream.read_exact(&mut answer)?;
        // From one backend, and from the same as all before.
        let is_right = answer.iter().all(|byte| *byte == *mark.get_or_insert(*byte));
        let mut seen = tally.lock();
        seen.answers += u64::from(is_right);
        seen.wrong += u64::from(!is_right);
        seen.returns.extend(lost_at.take().map(|at| at.elapsed()));
        if seen.is_over {
            break;
        }
        drop(seen);
        think(&stream)?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let _ = stream.read(&mut [0]); // the end of the backend's stream; the client has all it wanted
    Ok(())
}

/// Waits, but notices at once when the connection ends.
fn think(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(THINKING))?;
    match stream.read(&mut [0]) {
        Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(()),
        Err(err) => Err(err),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// What is shown.

/// Shows what happens: a picture that is drawn over and over in a terminal, lines anywhere else.
struct Stage<'a> {
    control: &'a Control,
    tally: &'a Tally,
    started: Instant,
    nodes: Vec<Shown>,
    steps: usize,
    headline: &'static str,
    /// How many clients had come again, after a loss, before this step.
    returned_before: usize,
    /// What was said last, in a terminal.
    said: VecDeque<String>,
    stats: Stats,
    drawn_at: Instant,
    screen: Screen,
}

/// A backend as it is shown.
struct Shown {
    name: &'static str,
    addr: SocketAddr,
    state: &'static str,
    bytes: u64,
    /// Bytes a second, smoothed.
    rate: f64,
}

enum Screen {
    Terminal { has_colour: bool, height: usize },
    Lines { next_status: Duration },
}

const STEPS: usize = 6;
/// How many of the last lines said stay in the picture, which is to fit a terminal of 24 lines with room to spare.
const LINES_KEPT: usize = 9;
const FRAME_TIME: Duration = Duration::from_millis(100);
const STATUS_TIME: Duration = Duration::from_secs(1);

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

impl<'a> Stage<'a> {
    fn new(control: &'a Control, tally: &'a Tally, nodes: &[Node]) -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let screen = match io::stdout().is_terminal() && !is_dumb {
            true => Screen::Terminal { has_colour: !is_set("NO_COLOR"), height: 0 },
            false => Screen::Lines { next_status: STATUS_TIME },
        };
        Self {
            control,
            tally,
            started: Instant::now(),
            nodes: nodes.iter().map(Shown::new).collect(),
            steps: 0,
            headline: "",
            returned_before: 0,
            said: VecDeque::new(),
            stats: Stats::default(),
            drawn_at: Instant::now(),
            screen,
        }
    }

    /// Begins a step of the story.
    fn step(&mut self, headline: &'static str) -> Result<()> {
        self.steps += 1;
        self.headline = headline;
        self.returned_before = self.tally.lock().returns.len();
        if let Screen::Lines { .. } = self.screen {
            writeln!(io::stdout(), "\n{}/{STEPS} {headline}", self.steps)?;
        }
        Ok(())
    }

    /// Tells what happens now.
    fn say(&mut self, what: impl Into<String>) -> Result<()> {
        let line = format!("{:5.1} s  {}", self.started.elapsed().as_secs_f64(), what.into());
        match self.screen {
            Screen::Lines { .. } => writeln!(io::stdout(), "{line}")?,
            Screen::Terminal { .. } => {
                self.said.push_back(line);
                if self.said.len() > LINES_KEPT {
                    self.said.pop_front();
                }
                self.draw()?;
            }
        }
        Ok(())
    }

    /// Lets things go on for a while.
    fn play_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.look()?;
            std::thread::sleep(FRAME_TIME.min(end.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// Waits until something is so, and says how long it took.
    fn watch(&mut self, what: &str, is_so: impl Fn(&Stats) -> bool) -> Result<()> {
        let start = Instant::now();
        while !is_so(&self.control.stats()?) {
            if start.elapsed() > PATIENCE {
                return Err(format!("never seen: {what}").into());
            }
            self.look()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        self.say(format!("{} later: {what}", millis(start.elapsed())))
    }

    /// Waits until those who lost their connections are served again, and says how long it took them.
    fn watch_clients_return(&mut self, lost: usize) -> Result<()> {
        let before = self.returned_before;
        let start = Instant::now();
        // A client that was just leaving lost nothing, and does not return.
        while self.tally.lock().returns.len() < before + lost && start.elapsed() < Duration::from_millis(500) {
            self.look()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        let returned = self.tally.lock().returns[before..].to_vec();
        let slowest = returned.iter().max().copied().unwrap_or_default();
        let returned = returned.len();
        self.say(format!(
            "{returned} clients came again at once and are served; the slowest had to wait {}",
            millis(slowest)
        ))
    }

    /// Hands the balancer a new set, and waits until it is in force.
    fn update(&mut self, set: &BackendSet) -> Result<(Applied, Duration)> {
        let start = Instant::now();
        let applied = self.control.update(set.clone())?.wait()?;
        let took = start.elapsed();
        let Applied { closed, cancelled, .. } = applied;
        self.say(format!("applied after {}: closed {closed} connections, cancelled {cancelled} dials", millis(took)))?;
        Ok((applied, took))
    }

    /// Takes a look at the balancer, and shows it if it is time to.
    fn look(&mut self) -> Result<()> {
        let passed = self.drawn_at.elapsed();
        if passed < FRAME_TIME {
            return Ok(());
        }
        self.drawn_at = Instant::now();
        self.stats = self.control.stats()?;
        for node in &mut self.nodes {
            let bytes = self.stats.backend(node.name).map_or(0, |backend| bytes(&backend.usage));
            let rate = bytes.saturating_sub(node.bytes) as f64 / passed.as_secs_f64();
            node.rate = 0.7 * node.rate + 0.3 * rate;
            node.bytes = bytes;
        }
        self.draw()
    }

    /// Ends the show.
    fn finish(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            (node.state, node.rate) = ("stopped", 0.0);
        }
        self.stats.backends.iter_mut().for_each(|backend| backend.usage.open = 0);
        self.draw()
    }

    fn draw(&mut self) -> Result<()> {
        let text = match &self.screen {
            Screen::Lines { next_status } if self.started.elapsed() < *next_status => return Ok(()),
            Screen::Lines { .. } => self.status_line(),
            Screen::Terminal { height, .. } => {
                // Whole or not at all: if the program is ended anywhere, the cursor is there and lines wrap.
                let up = if *height > 0 { format!("\x1b[{height}A") } else { String::new() };
                let picture = self.picture().join("\x1b[K\n");
                format!("\x1b[?25l\x1b[?7l\r{up}{picture}\x1b[K\n\x1b[J\x1b[?7h\x1b[?25h")
            }
        };
        match &mut self.screen {
            Screen::Lines { next_status } => *next_status = self.started.elapsed() + STATUS_TIME,
            Screen::Terminal { height, .. } => *height = text.matches('\n').count(),
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    fn status_line(&self) -> String {
        let node = |node: &Shown| match self.stats.backend(node.name) {
            Some(backend) => {
                let Usage { open, total, .. } = backend.usage;
                let (state, bytes) = (node.state(backend.ejected).0, size(node.bytes));
                format!("{} {open:>2} open {total:>3} total {bytes:>9} {state:<8}", node.name)
            }
            None => format!("{} {:<38}", node.name, node.state),
        };
        let nodes: Vec<_> = self.nodes.iter().map(node).collect();
        format!("{:5.1} s  | {} |\n", self.started.elapsed().as_secs_f64(), nodes.join(" | "))
    }

    /// The picture, as lines of which the terminal cuts off what is too long for it.
    fn picture(&self) -> Vec<String> {
        let seen = self.tally.lock();
        let stats = &self.stats;
        let headline = format!("{}/{STEPS}  {}", self.steps, self.headline);
        let columns = "node     state     open                total       bytes         rate  address";
        let mut lines = vec![String::new(), self.paint(BOLD, &headline), String::new(), self.paint(DIM, columns)];
        lines.extend(self.nodes.iter().map(|node| self.row(node)));
        lines.push(String::new());
        lines.push(format!(
            "{} connected, {} dialling, {} refused;  {} answers, {} wrong;  {} cut off",
            stats.open,
            stats.dialling,
            stats.refused.total(),
            seen.answers,
            seen.wrong,
            seen.lost,
        ));
        lines.push(String::new());
        let last = self.said.len().saturating_sub(1);
        lines.extend(self.said.iter().enumerate().map(|(index, line)| match index == last {
            true => self.paint(BOLD, line),
            false => line.clone(),
        }));
        lines.resize(11 + LINES_KEPT, String::new());
        lines
    }

    fn row(&self, node: &Shown) -> String {
        let backend = self.stats.backend(node.name);
        let (state, colour) = node.state(backend.is_some_and(|backend| backend.ejected));
        let state = self.paint(colour, &format!("{state:<8}"));
        let Some(backend) = backend else {
            return format!("{}   {state}     -  {:<14}{:>5}{:>12}{:>13}  {}", node.name, "", "-", "-", "-", node.addr);
        };
        let Usage { open, total, .. } = backend.usage;
        let bar = self.paint(colour, &format!("{:<14}", "#".repeat(open.min(14) as usize).replace('#', "\u{25a0}")));
        let (bytes, rate) = (size(node.bytes), size(node.rate as u64) + "/s");
        format!("{}   {state}  {open:>4}  {bar}{total:>5}{bytes:>12}{rate:>13}  {}", node.name, node.addr)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        match self.screen {
            Screen::Terminal { has_colour: true, .. } => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

impl Shown {
    fn new(node: &Node) -> Self {
        Self { name: node.name, addr: node.addr, state: "serving", bytes: 0, rate: 0.0 }
    }

    /// What the balancer does not know yet comes first, then what it knows.
    fn state(&self, is_ejected: bool) -> (&'static str, &'static str) {
        match self.state {
            _ if is_ejected => ("ejected", YELLOW),
            "serving" => ("serving", GREEN),
            "stopped" => ("stopped", DIM),
            other => (other, RED),
        }
    }
}

fn open(stats: &Stats, name: &str) -> u64 {
    stats.backend(name).map_or(0, |node| node.usage.open)
}

fn bytes(usage: &Usage) -> u64 {
    usage.bytes_up + usage.bytes_down
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1e3;
    if millis < 10.0 { format!("{millis:.2} ms") } else { format!("{millis:.0} ms") }
}
