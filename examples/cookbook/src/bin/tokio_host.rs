//! A tokio program with a balancer in front of whatever a name resolves to.

use std::time::Duration;

use tinylb::{BackendSet, Control, Error, Server, TcpBackend};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, listen, name] = &args[..] else { return Err("usage: LISTEN HOST:PORT".into()) };
    let listener = std::net::TcpListener::bind(listen)?;
    let balancer = Server::builder().build(listener)?.spawn()?; // on a thread of its own
    let control = balancer.control();
    println!("listening on {}", control.local_addr());
    tokio::select! {
        result = follow(&control, name) => result?,
        pressed = tokio::signal::ctrl_c() => pressed?,
    }
    control.drain(Duration::from_secs(5))?;
    let summary = control.ended().await?; // all sockets are closed
    println!("served {} clients in {:.1?}", summary.ended.total(), summary.ran_for);
    Ok(())
}

/// Looks the name up again and again, and replaces the backend set.
async fn follow(control: &Control, name: &str) -> Result<(), Error> {
    let mut lookups = tokio::time::interval(Duration::from_secs(10));
    loop {
        lookups.tick().await;
        match tokio::net::lookup_host(name).await {
            Ok(addrs) => {
                let backends = addrs.map(|addr| (addr.to_string(), TcpBackend::new(addr)));
                let applied = control.update(backends.collect::<BackendSet>())?.await?;
                println!("{} backends, closed {}", applied.backends, applied.closed);
            }
            Err(err) => eprintln!("{name}: {err}"), // the set stays as it is
        }
    }
}
