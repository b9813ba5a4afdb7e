//! What a switch has to know of an Ethernet frame.

pub(crate) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const HEADER: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const TCP: u8 = 6;
/// Where the checksum is in a TCP header.
const CHECKSUM: usize = 16;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    One(Mac),
    All,
}

pub(crate) fn destination(frame: &[u8]) -> Option<Destination> {
    let mac: Mac = frame.get(..6)?.try_into().ok()?;
    Some(if mac == BROADCAST { Destination::All } else { Destination::One(mac) })
}

/// Computes the checksum of a TCP segment.
///
/// Between namespaces the kernel leaves it to a network card that there is not, and takes the segment for good as long as
/// it stays in kernel memory. Ours comes and goes through a socket.
pub(crate) fn finish_checksum(frame: &mut [u8]) {
    let Some((ethernet, packet)) = frame.split_at_mut_checked(HEADER) else { return };
    if ethernet[12..] != IPV4 || packet.len() < 20 || packet[9] != TCP {
        return;
    }
    let header_len = usize::from(packet[0] & 0x0f) * 4;
    let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let Some((header, segment)) =
        packet.get_mut(..len).and_then(|packet| packet.split_at_mut_checked(header_len))
    else {
        return;
    };
    let Some(checksum) = segment.get_mut(CHECKSUM..CHECKSUM + 2) else { return };
    checksum.fill(0);
    let sum = sum(&header[12..20]) + u64::from(TCP) + segment.len() as u64 + sum(segment);
    segment[CHECKSUM..CHECKSUM + 2].copy_from_slice(&(!fold(sum)).to_be_bytes());
}

fn sum(bytes: &[u8]) -> u64 {
    let word =
        |pair: &[u8]| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}
