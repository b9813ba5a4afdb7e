//! A balancer whose counters Prometheus scrapes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use tinylb::{BackendSet, BackendStats, EndCounts, EndReason, Server, Stats, TcpBackend};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, listen, metrics, node] = &args[..] else { return Err("needs three addresses".into()) };
    let set = BackendSet::from([("node", TcpBackend::resolve(node)?)]);
    let server = Server::builder().backends(set).build(TcpListener::bind(listen)?)?.spawn()?;
    let metrics = TcpListener::bind(metrics)?;
    println!("listening on {}, metrics on {}", server.local_addr(), metrics.local_addr()?);
    for scraper in metrics.incoming() {
        let text = render(&server.control().stats()?.wait()?);
        scraper.and_then(|scraper| answer(scraper, &text)).unwrap_or_else(|err| eprintln!("{err}"));
    }
    Ok(())
}

fn answer(mut scraper: TcpStream, text: &str) -> std::io::Result<()> {
    scraper.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
    let _ = scraper.read(&mut [0; 4096])?; // whatever is asked for
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close";
    write!(scraper, "{head}\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

fn render(stats: &Stats) -> String {
    let metric = |name: &str, kind: &str, label: &str, samples: Vec<(&str, u64)>| {
        let line = |(value, count)| format!("tinylb_{name}{{{label}={value:?}}} {count}\n");
        let lines: String = samples.into_iter().map(line).collect();
        format!("# TYPE tinylb_{name} {kind}\n{lines}")
    };
    let reasons = |counts: &EndCounts, reasons: &'static [EndReason]| {
        reasons.iter().map(|reason| (reason.as_str(), counts.of(*reason))).collect()
    };
    let backends = |value: fn(&BackendStats) -> u64| {
        stats.backends.iter().map(|backend| (&*backend.key, value(backend))).collect()
    };
    metric("ended_total", "counter", "reason", reasons(&stats.ended, EndReason::ENDED))
        + &metric("refused_total", "counter", "reason", reasons(&stats.refused, EndReason::REFUSED))
        + &metric("open", "gauge", "backend", backends(|backend| backend.usage.open))
        + &metric("ejected", "gauge", "backend", backends(|backend| backend.ejected.into()))
}
