//! What people write by hand: accept, connect to the next backend, `copy_bidirectional`.

use std::io;
use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// Serves for ever, on this thread alone: what it is compared with has one thread too.
pub fn serve(listener: std::net::TcpListener, backends: &[SocketAddr]) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        for turn in 0.. {
            let (client, _) = listener.accept().await?;
            tokio::spawn(relay(client, backends[turn % backends.len()]));
        }
        Ok(())
    })
}

async fn relay(mut client: TcpStream, backend: SocketAddr) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut backend = TcpStream::connect(backend).await?;
    backend.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut backend).await?;
    Ok(())
}
