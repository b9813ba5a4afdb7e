//! A host program with the balancer inside: `cargo run --example embed`.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tinylb::{BackendSet, Server, TcpBackend};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (addr_1, addr_2) = (start_backend()?, start_backend()?);

    // The host program begins here: a listener, a server, a handle that controls it, and a thread
    // that runs it.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let server = Server::builder().connect_timeout(Duration::from_secs(2)).build(listener)?;
    let control = server.control(); // Clone + Send + Sync
    let balancer = std::thread::spawn(move || server.run());

    // Until there is a set, clients are refused. Choose keys as you like; the target is dialled.
    let mut set = BackendSet::new();
    set.insert("node-1", TcpBackend::new(addr_1));
    // Looked up here and now.
    set.insert("node-2", TcpBackend::resolve(&format!("localhost:{}", addr_2.port()))?);
    control.update(set.clone())?; // returns at once
    let mut first = connect(addr)?; // goes to node-1, since that is the first key
    let mut second = connect(addr)?; // goes to node-2

    // Whenever the backends change, pass the whole new set. Connections to removed targets are
    // closed.
    set.remove("node-1");
    let applied = control.update(set)?.wait()?; // from here on no byte goes to or comes from node-1
    println!("closed {} connections, cancelled {} dials", applied.closed, applied.cancelled);
    // A reset, not the end of an answer.
    println!("client of node-1: {:?}", first.read_line(&mut String::new()));
    second.get_ref().write_all(b"still there?\n")?;
    println!("client of node-2: {:?}", second.read_line(&mut String::new())); // served as before

    // No more clients are accepted; those that are served may finish within the limit. `shutdown`
    // ends everything at once.
    control.drain(Duration::from_secs(5))?;
    drop(second);
    let summary = balancer.join().expect("the balancer panicked")?;
    println!("{} clients were served, {} refused", summary.ended.total(), summary.refused.total());
    Ok(())
}

/// A backend that greets each client and sends back what it says.
fn start_backend() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("localhost:0")?;
    let addr = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut to in listener.incoming().flatten() {
            std::thread::spawn(move || {
                to.write_all(b"hello\n").and_then(|()| io::copy(&mut to.try_clone()?, &mut to))
            });
        }
    });
    Ok(addr)
}

/// A client that has been greeted, so it has reached a backend.
fn connect(addr: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let mut client = BufReader::new(TcpStream::connect(addr)?);
    client.read_line(&mut String::new()).map(|_| client)
}
