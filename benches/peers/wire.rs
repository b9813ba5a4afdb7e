//! The first message on each connection: it tells the backend what is wanted, and its answer tells
//! who serves it.

/// Bytes of an order, of its answer, and of every message of a round trip.
pub(crate) const MESSAGE: usize = 64;

pub(crate) type Message = [u8; MESSAGE];

#[derive(Clone, Copy)]
pub(crate) enum Order {
    /// Send back whatever comes.
    Echo,
    /// Take `upload` bytes; from the first of them on, send `download` bytes, and one more when all
    /// are taken.
    Transfer { upload: u64, download: u64 },
}

impl Order {
    pub(crate) fn encode(self) -> Message {
        let mut message = [0x5a; MESSAGE];
        let (kind, upload, download) = match self {
            Self::Echo => (b'e', 0, 0),
            Self::Transfer { upload, download } => (b't', upload, download),
        };
        message[..2].copy_from_slice(&[kind, 0]);
        message[8..16].copy_from_slice(&u64::to_le_bytes(upload));
        message[16..24].copy_from_slice(&u64::to_le_bytes(download));
        message
    }

    pub(crate) fn decode(message: &Message) -> Option<Self> {
        let number = |at: usize| message[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        match message[0] {
            b'e' => Some(Self::Echo),
            b't' => Some(Self::Transfer { upload: number(8)?, download: number(16)? }),
            _ => None,
        }
    }
}

/// The answer of the backend of this number.
pub(crate) fn answer(order: &Message, backend: u8) -> Message {
    let mut answer = *order;
    // Never the order itself: a client that connected to its own port, as TCP allows, must not take
    // that for a backend.
    answer[1] = backend + 1;
    answer
}

/// The number of the backend that gave this answer, if it is one to this order.
pub(crate) fn answered_by(order: &Message, given: &Message) -> Option<u8> {
    let backend = given[1].checked_sub(1)?;
    (answer(order, backend) == *given).then_some(backend)
}
