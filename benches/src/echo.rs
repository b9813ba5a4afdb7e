//! A backend that sends back what it is sent, and ends its stream when the client has ended its
//! own.

use std::io;
use std::net::TcpListener;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{descriptors, loopback};

/// Starts one on a thread of its own, at all addresses of the loopback network, and returns its
/// port.
pub fn start() -> u16 {
    let listener = loopback::listener();
    let port = listener.local_addr().unwrap().port();
    descriptors::spawn_with_own(|| serve(listener).unwrap());
    port
}

fn serve(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((client, _)) => drop(tokio::spawn(echo(client))),
                // No descriptor is left until it has noticed that earlier connections were aborted.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
}

async fn echo(mut client: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match client.read(&mut buffer).await? {
            0 => return Ok(()),
            len => client.write_all(&buffer[..len]).await?,
        }
    }
}
