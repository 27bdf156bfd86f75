//! Memory that connections receive into.
//!
//! Every thread has one buffer, which a connection borrows for as long as there is something to read.
//! Data segments are slices of it, so nothing is copied; what is left of the buffer goes back when all of
//! it has been taken. A session that is silent holds none.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::ReadHalf;

/// Room for at least this much is there before a read into a thread's buffer,
const ROOM_BYTES_MIN: usize = 16 << 10;
/// and when there is less, this much is allocated.
const ROOM_BYTES: usize = 128 << 10;
/// The start of a PDU, up to this long, is copied out of a thread's buffer when nothing follows it at
/// once: else whoever sends half a PDU would hold a whole buffer.
const COPIED_BYTES_MAX: usize = 16 << 10;

thread_local! {
    static SPARE: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// What a connection has received and not taken yet.
#[derive(Default)]
pub(super) struct Inbound {
    /// Not to be left empty over an `await`: it goes back to the thread.
    pub(super) bytes: BytesMut,
    /// It is a thread's buffer, not one for the PDU alone.
    is_borrowed: bool,
}

impl Inbound {
    /// Reads some bytes, and makes room for `missing` in one piece before. Gives how many; 0 is the end.
    pub(super) async fn receive(&mut self, reader: &mut ReadHalf<'_>, missing: usize) -> io::Result<usize> {
        poll_fn(|context| {
            if self.bytes.is_empty() {
                self.bytes = SPARE.take();
                self.is_borrowed = true;
            }
            let (room, more) = if self.is_borrowed {
                (missing.max(ROOM_BYTES_MIN), missing.max(ROOM_BYTES))
            } else {
                (missing, missing)
            };
            if self.bytes.capacity() - self.bytes.len() < room {
                self.bytes.reserve(more);
            }
            let read = pin!(reader.read_buf(&mut self.bytes)).poll(context);
            if read.is_pending() {
                self.put_by(missing);
            }
            read
        })
        .await
    }

    /// Gives the thread's buffer back, if all of it has been taken.
    pub(super) fn give_back(&mut self) {
        if self.bytes.is_empty() && std::mem::take(&mut self.is_borrowed) {
            SPARE.set(std::mem::take(&mut self.bytes));
        }
    }

    fn put_by(&mut self, missing: usize) {
        if self.is_borrowed && (1..=COPIED_BYTES_MAX).contains(&self.bytes.len()) {
            let mut own = BytesMut::with_capacity(self.bytes.len() + missing);
            own.extend_from_slice(&self.bytes);
            let mut borrowed = std::mem::replace(&mut self.bytes, own);
            borrowed.clear();
            SPARE.set(borrowed);
            self.is_borrowed = false;
        }
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    /// Reads what there is and then waits in vain.
    async fn wait(inbound: &mut Inbound, reader: &mut ReadHalf<'_>, missing: usize) {
        let none =
            tokio::time::timeout(std::time::Duration::from_millis(1), inbound.receive(reader, missing));
        assert!(none.await.is_err());
    }

    /// Guards memory: who is silent holds nothing, whether everything or nothing was sent before, and half a
    /// PDU holds little more than itself.
    #[test]
    fn silence_holds_nothing() {
        run(async {
            let (mut near, mut far) = pair().await;
            let (mut reader, _) = far.split();
            let mut inbound = Inbound::default();
            wait(&mut inbound, &mut reader, 48).await;
            assert_eq!(inbound.bytes.capacity(), 0);
            near.write_all(&[7; 5000]).await.unwrap();
            assert_eq!(inbound.receive(&mut reader, 48).await.unwrap(), 5000);
            inbound.bytes.clear();
            inbound.give_back();
            assert_eq!(inbound.bytes.capacity(), 0);
            near.write_all(&[8; 5000]).await.unwrap();
            assert_eq!(inbound.receive(&mut reader, 48).await.unwrap(), 5000);
            inbound.give_back();
            wait(&mut inbound, &mut reader, 1000).await;
            assert_eq!(inbound.bytes, [8; 5000][..]);
            assert!(inbound.bytes.capacity() < 8192, "{}", inbound.bytes.capacity());
        });
    }

    /// Guards data against being torn: what comes in pieces lies in one piece, whatever others read meanwhile
    /// on the same thread.
    #[test]
    fn pieces_are_joined() {
        run(async {
            let (mut near, mut far) = pair().await;
            let (mut other_near, mut other_far) = pair().await;
            let (mut reader, mut other_reader) = (far.split().0, other_far.split().0);
            let (mut inbound, mut other) = (Inbound::default(), Inbound::default());
            let whole: Vec<u8> = (0..200_000u32).map(|at| (at % 251) as u8).collect();
            let mut at = 0;
            for len in [1usize, 47, 100, 16_000, 1, 20_000, 100_000, 63_851] {
                near.write_all(&whole[at..at + len]).await.unwrap();
                at += len;
                while inbound.bytes.len() < at {
                    let missing = whole.len() - inbound.bytes.len();
                    inbound.receive(&mut reader, missing).await.unwrap();
                    inbound.give_back();
                }
                other_near.write_all(&[0xee; 3000]).await.unwrap();
                other.receive(&mut other_reader, 48).await.unwrap();
                other.bytes.clear();
                other.give_back();
                if at < whole.len() {
                    wait(&mut inbound, &mut reader, whole.len() - at).await;
                }
            }
            assert_eq!(inbound.bytes, whole);
        });
    }
}
