//! The balancer at work, in less than 20 seconds: `cargo run --release --example demo`.
//!
//! All of it runs in this process: three backends, the balancer, and clients that ask, are answered
//! and check each byte of it. The story is told in [`play`]; what it says of times and numbers is
//! measured in this run.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tinylb::{
    Applied, BackendSet, Control, Ejection, Error, Server, Stats, Summary, TcpBackend, Usage,
};

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
        // The reader has left.
        Err(err)
            if err
                .downcast_ref()
                .is_some_and(|err: &io::Error| err.kind() == io::ErrorKind::BrokenPipe) =>
        {
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
    let mut set: BackendSet =
        nodes.iter().map(|node| (node.name, TcpBackend::new(node.addr))).collect();
    let listener = TcpListener::bind(ANY_PORT)?;
    let addr = listener.local_addr()?;
    // By default a backend that keeps failing is skipped for up to 30 seconds, which is longer
    // than this story.
    let ejection = Ejection::new(3, Duration::from_secs(1), Duration::from_secs(1));
    let balancer =
        Server::builder().backends(set.clone()).ejection(ejection).build(listener)?.spawn()?;
    let control = balancer.control();
    let tally = Arc::new(Tally::default());
    let mut stage = Stage::new(&control, &tally, &nodes);
    stage.open()?;

    stage.step("clients spread over three backends")?;
    stage.say("clients ask, check each answer, leave after a while, come again")?;
    let clients: Vec<_> = (0..CLIENTS).map(|number| start_client(number, addr, &tally)).collect();
    stage.play_for(Duration::from_secs(3))?;

    stage.step("node-2 leaves the set while it is in use")?;
    stage.say("removing node-2 ...")?;
    stage.play_for(Duration::from_millis(600))?;
    set.remove("node-2");
    stage.nodes[1].state = State::Removed;
    let (closed, took) = stage.update(&set)?;
    stage.watch_clients_return(closed)?;
    stage.play_for(Duration::from_millis(2500))?;
    let late_bytes = stage.late_bytes()?;
    stage.say(format!("since it was applied, {late_bytes} bytes went to or came from node-2"))?;
    let removal = Removal { took, closed, late_bytes };
    stage.play_for(Duration::from_millis(400))?;

    stage.step("node-2 comes back under another address")?;
    let replacement = Node::start("node-2", ANY_PORT.parse()?)?;
    stage
        .say(format!("adding node-2 at {} (it was at {}) ...", replacement.addr, nodes[1].addr))?;
    stage.play_for(Duration::from_millis(400))?;
    nodes[1] = replacement;
    stage.nodes[1] = Shown::new(&nodes[1]);
    set.insert("node-2", TcpBackend::new(nodes[1].addr));
    stage.update(&set)?;
    stage.watch("it has its first client", |stats| usage(stats, "node-2").open > 0)?;
    stage.play_for(Duration::from_millis(2500))?;

    stage.step("node-3 dies, and nobody tells the balancer")?;
    stage.say("killing node-3 ...")?;
    stage.play_for(Duration::from_millis(400))?;
    stage.nodes[2].state = State::Dead;
    let killed = nodes[2].kill();
    stage.mark(format!("node-3 is dead, and {killed} connections with it"))?;
    stage.watch_clients_return(killed)?;
    let is_ejected = |stats: &Stats| stats.backend("node-3").is_some_and(|node| node.ejected);
    stage.watch("after 3 failed dials it is passed over (ejected)", is_ejected)?;
    stage.play_for(Duration::from_millis(2200))?;
    let stats = control.stats()?.wait()?;
    let (Usage { dial_failures, total, .. }, refused) =
        (usage(&stats, "node-3"), stats.refused.total());
    stage.say(format!(
        "{dial_failures} dials failed, their clients were sent on to others; {refused} were refused"
    ))?;

    stage.step("node-3 starts again, and nobody tells the balancer")?;
    nodes[2] = Node::start("node-3", nodes[2].addr)?;
    stage.nodes[2].state = State::Serving;
    stage.mark("node-3 is alive again")?;
    stage.watch("the balancer has found it by itself", |stats| {
        usage(stats, "node-3").total > total
    })?;
    stage.play_for(Duration::from_millis(2000))?;

    stage.step("the end: nobody new, and those who are served may finish")?;
    stage.mark(format!("draining {} connections ...", control.stats()?.wait()?.open))?;
    tally.lock().is_over = true;
    control.drain(PATIENCE)?;
    let summary = balancer.join()?;
    stage
        .say(format!("stopped after {}, no connection left", millis(stage.marked_at.elapsed())))?;
    clients.into_iter().for_each(|client| drop(client.join()));
    stage.close()?;
    tell(&summary, &tally.lock(), &removal, dial_failures)
}

struct Removal {
    took: Duration,
    closed: usize,
    late_bytes: u64,
}

/// What was seen. An error if it is not what was promised.
fn tell(summary: &Summary, seen: &Seen, removal: &Removal, dial_failures: u64) -> Result<()> {
    let refused = summary.refused.total();
    let slowest = seen.returns.iter().max().copied().unwrap_or_default();
    let Removal { took, closed, late_bytes } = removal;
    let lines = [
        format!("Seen in {:.1} s:", summary.ran_for.as_secs_f64()),
        format!("  {} connections served, {refused} refused", summary.ended.total()),
        format!(
            "  {} answers ({}) complete, {} wrong",
            seen.answers,
            size(summary.bytes_down),
            seen.wrong
        ),
        format!(
            "  removal: applied after {}, {closed} connections closed, {late_bytes} bytes moved since",
            millis(*took)
        ),
        format!(
            "  failover: {dial_failures} dials failed, for which {refused} clients were refused"
        ),
        format!(
            "  {} connections lost, their clients served again within {}",
            seen.lost,
            millis(slowest)
        ),
    ];
    writeln!(io::stdout(), "\n{}", lines.join("\n"))?;
    match (seen.wrong, late_bytes, refused) {
        (0, 0, 0) => Ok(()),
        _ => Err("this is not what was promised".into()),
    }
}

// What happens.

/// A backend that answers questions. When it is killed or dropped, its listener and all its
/// connections are gone.
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

fn visit(
    addr: SocketAddr,
    questions: u32,
    tally: &Tally,
    lost_at: &mut Option<Instant>,
) -> io::Result<()> {
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
        Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Ok(())
        }
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
    /// When that began of which it is to be said how long it took.
    marked_at: Instant,
    /// What had been counted of removed backends right after the last update was applied.
    departed_before: u64,
    /// What was said last, in a terminal.
    said: VecDeque<String>,
    stats: Stats,
    looked_at: Instant,
    screen: Screen,
}

/// A backend as it is shown.
struct Shown {
    name: &'static str,
    addr: SocketAddr,
    state: State,
    bytes: u64,
    /// Bytes a second, smoothed.
    rate: f64,
}

/// What only the one who tells the story knows of a backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Serving,
    Removed,
    Dead,
    Stopped,
}

enum Screen {
    Terminal { has_colour: bool, height: usize },
    Lines { next_status: Duration },
}

const STEPS: usize = 6;
/// How many of the last lines said stay in the picture, which has to fit a small terminal.
const LINES_KEPT: usize = 8;
/// How many connections a bar can show, one by one.
const BAR: usize = 12;
const FRAME_TIME: Duration = Duration::from_millis(100);
/// Over how many seconds a rate is smoothed.
const RATE_TIME: f64 = 0.4;
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
            marked_at: Instant::now(),
            departed_before: 0,
            said: VecDeque::new(),
            stats: Stats::default(),
            looked_at: Instant::now(),
            screen,
        }
    }

    /// Begins the show.
    fn open(&mut self) -> Result<()> {
        if let Screen::Lines { .. } = self.screen {
            writeln!(io::stdout(), "{}", self.title())?;
        }
        Ok(())
    }

    fn title(&self) -> String {
        format!(
            "tinylb: {CLIENTS} clients -> {} -> {} backends",
            self.control.local_addr(),
            NODES.len()
        )
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
                self.look()?;
            }
        }
        Ok(())
    }

    /// Tells of the beginning of something that takes time.
    fn mark(&mut self, what: impl Into<String>) -> Result<()> {
        self.marked_at = Instant::now();
        self.say(what)
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

    /// Waits until something is so, and says how long it took since the mark.
    fn watch(&mut self, what: &str, is_so: impl Fn(&Stats) -> bool) -> Result<()> {
        while !is_so(&self.control.stats()?.wait()?) {
            if self.marked_at.elapsed() > PATIENCE {
                return Err(format!("never seen: {what}").into());
            }
            self.glance()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        self.say(format!("{what}, {} later", millis(self.marked_at.elapsed())))
    }

    /// Waits until those who lost their connections are served again, and says how long it took
    /// them.
    fn watch_clients_return(&mut self, lost: usize) -> Result<()> {
        // A client that was just leaving lost nothing, and does not return.
        while self.returned().len() < lost && self.marked_at.elapsed() < Duration::from_millis(500)
        {
            self.glance()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        let returned = self.returned();
        let (count, slowest) = (returned.len(), returned.into_iter().max().unwrap_or_default());
        self.say(format!(
            "{count} clients came again at once and are served, the slowest after {}",
            millis(slowest)
        ))
    }

    /// How long it took those who lost their connections in this step until they were served again.
    fn returned(&self) -> Vec<Duration> {
        self.tally.lock().returns[self.returned_before..].to_vec()
    }

    /// Hands the balancer a new set, and waits until it is in force. Returns how many connections
    /// that closed, and how long it took.
    fn update(&mut self, set: &BackendSet) -> Result<(usize, Duration)> {
        self.marked_at = Instant::now();
        let Applied { closed, cancelled, .. } = self.control.update(set.clone())?.wait()?;
        let took = self.marked_at.elapsed();
        self.departed_before = bytes(&self.control.stats()?.wait()?.departed);
        self.say(format!(
            "applied after {}: closed {closed} connections, cancelled {cancelled} dials",
            millis(took)
        ))?;
        Ok((closed, took))
    }

    /// How many bytes went to or came from removed backends since that was applied.
    fn late_bytes(&self) -> Result<u64> {
        Ok(bytes(&self.control.stats()?.wait()?.departed) - self.departed_before)
    }

    /// Takes a look if the last one is long enough ago.
    fn glance(&mut self) -> Result<()> {
        if self.looked_at.elapsed() < FRAME_TIME { Ok(()) } else { self.look() }
    }

    /// Takes a look at the balancer, and shows it.
    fn look(&mut self) -> Result<()> {
        match self.control.stats().and_then(|stats| stats.wait()) {
            Ok(stats) => self.stats = stats,
            Err(Error::Stopped) => {} // it was seen for the last time
            Err(err) => return Err(err.into()),
        }
        let passed = self.looked_at.elapsed().as_secs_f64().max(1e-6);
        self.looked_at = Instant::now();
        for node in &mut self.nodes {
            let bytes = bytes(&usage(&self.stats, node.name));
            let rate = bytes.saturating_sub(node.bytes) as f64 / passed;
            let weight = 1.0 - (-passed / RATE_TIME).exp();
            node.rate += weight * (rate - node.rate);
            node.bytes = bytes;
        }
        self.draw()
    }

    /// Ends the show. The balancer's end is the end of all that was open.
    fn close(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            (node.state, node.rate) = (State::Stopped, 0.0);
        }
        (self.stats.open, self.stats.dialling) = (0, 0);
        self.stats.backends.iter_mut().for_each(|backend| backend.usage.open = 0);
        self.draw()
    }

    fn draw(&mut self) -> Result<()> {
        let text = match &self.screen {
            Screen::Lines { next_status } if self.started.elapsed() < *next_status => return Ok(()),
            Screen::Lines { .. } => self.status_line(),
            Screen::Terminal { height, .. } => {
                // Whole or not at all: if the program is ended anywhere, the cursor is there and
                // lines wrap.
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
                let (state, _) = node.state(backend.ejected);
                format!(
                    "{} {state:<7} {open:>2} open {total:>3} total {:>8}",
                    node.name,
                    size(node.bytes)
                )
            }
            None => format!("{} {:<34}", node.name, "removed"),
        };
        let nodes: Vec<_> = self.nodes.iter().map(node).collect();
        format!("{:5.1} s  | {} |\n", self.started.elapsed().as_secs_f64(), nodes.join(" | "))
    }

    /// The picture, as lines of which the terminal cuts off what is too long for it.
    fn picture(&self) -> Vec<String> {
        let seen = self.tally.lock();
        let Stats { open, dialling, refused, .. } = &self.stats;
        let mut lines = vec![
            self.paint(DIM, &self.title()),
            String::new(),
            self.paint(BOLD, &format!("{}/{STEPS}  {}", self.steps, self.headline)),
            String::new(),
            self.paint(
                DIM,
                "backend  state  open               total     bytes        rate  address",
            ),
        ];
        lines.extend(self.nodes.iter().map(|node| self.row(node)));
        lines.push(String::new());
        lines.push(format!(
            "clients  {open} connected, {dialling} dialling, {} refused, {} cut off; {} answers, {} wrong",
            refused.total(),
            seen.lost,
            seen.answers,
            seen.wrong
        ));
        lines.push(String::new());
        let rows = lines.len() + LINES_KEPT;
        let last = self.said.len().saturating_sub(1);
        lines.extend(self.said.iter().enumerate().map(|(index, line)| match index == last {
            true => self.paint(BOLD, line),
            false => line.clone(),
        }));
        lines.resize(rows, String::new());
        lines
    }

    fn row(&self, node: &Shown) -> String {
        let Some(backend) = self.stats.backend(node.name) else {
            let since = bytes(&self.stats.departed).saturating_sub(self.departed_before);
            let state = self.paint(RED, "removed");
            return format!(
                "{:<7}  {state}   -  {:<40}  {}",
                node.name,
                format!("{since} bytes since that was applied"),
                node.addr
            );
        };
        let (state, colour) = node.state(backend.ejected);
        let Usage { open, total, .. } = backend.usage;
        let bar = "\u{25a0}".repeat(open.min(BAR as u64) as usize);
        let (state, bar) = (
            self.paint(colour, &format!("{state:<7}")),
            self.paint(colour, &format!("{bar:<BAR$}")),
        );
        let (bytes, rate) = (size(node.bytes), size(node.rate as u64) + "/s");
        format!(
            "{:<7}  {state}{open:>4}  {bar} {total:>5}{bytes:>10}{rate:>12}  {}",
            node.name, node.addr
        )
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
        Self { name: node.name, addr: node.addr, state: State::Serving, bytes: 0, rate: 0.0 }
    }

    /// The word for its state, and the colour.
    fn state(&self, is_ejected: bool) -> (&'static str, &'static str) {
        match self.state {
            State::Stopped => ("stopped", DIM),
            _ if is_ejected => ("ejected", YELLOW),
            State::Dead => ("dead", RED),
            State::Removed | State::Serving => ("serving", GREEN),
        }
    }
}

fn usage(stats: &Stats, name: &str) -> Usage {
    stats.backend(name).map(|backend| backend.usage).unwrap_or_default()
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
