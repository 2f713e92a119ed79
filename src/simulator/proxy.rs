//! A TCP proxy between a node and an endpoint, for the faults of a network: it cuts, refuses,
//! stalls, delays, throttles, corrupts and half-closes, as it is told at run time. It knows nothing
//! of what it carries.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;
/// Chunks that may be on their way in one direction of one connection: with [`CHUNK`] its bound of
/// memory.
const IN_FLIGHT: usize = 64;

/// One direction of every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From whoever connected to the target.
    ToTarget,
    /// From the target.
    FromTarget,
}

/// How a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// With a reset: both sides see an error, and what was under way is lost.
    Reset,
    /// With an orderly end: both sides see the end of the stream.
    Finish,
}

/// What befalls the bytes of a direction.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    stalled: bool,
    delay: Duration,
    jitter: Duration,
    bytes_per_second: Option<u32>,
    /// That any one byte has one of its bits flipped.
    corruption: f64,
    /// Raised by one for each half-close of what is open then.
    half_closes: u64,
    /// Bytes that still pass before the cut, of the connections that were open when it was asked
    /// for.
    passing: Option<(u64, u64, Cut)>,
}

/// What is asked of the proxy.
#[derive(Debug, Clone, Copy, Default)]
struct Orders {
    refusing: bool,
    /// Raised by one for each cut of what is open then.
    cuts: u64,
    how: Option<Cut>,
    directions: [Faults; 2],
}

impl Orders {
    fn of(&self, direction: Direction) -> Faults {
        let [to_target, from_target] = self.directions;
        match direction {
            Direction::ToTarget => to_target,
            Direction::FromTarget => from_target,
        }
    }
}

/// A running proxy on a loopback address. Dropping it ends every connection with a reset.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    orders: watch::Sender<Orders>,
    open: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1, and carries what comes to `target`.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        Self::start_seeded(target, 0).await
    }

    /// As [`start`](Self::start), with jitter and corruption that follow from `seed`.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub async fn start_seeded(target: SocketAddr, seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (stop, orders) = (CancellationToken::new(), watch::Sender::default());
        let open = Arc::new(AtomicUsize::new(0));
        let serving = Serving {
            target,
            orders: orders.subscribe(),
            open: Arc::clone(&open),
            random: SmallRng::seed_from_u64(seed),
        };
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(serving.run(listener)).await });
        Ok(Self {
            address,
            orders,
            open,
            _stop: stop.drop_guard(),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Ends every connection. New ones are taken.
    pub fn cut(&self, how: Cut) {
        self.orders.send_modify(|orders| {
            orders.cuts += 1;
            orders.how = Some(how);
        });
    }

    /// Whether new connections are reset as soon as they come. The port stays taken, so that nobody
    /// else gets it.
    pub fn refuse(&self, refusing: bool) {
        self.orders.send_modify(|orders| orders.refusing = refusing);
    }

    /// Whether a direction is held up: connections stay open, and nothing passes. What comes is
    /// left to the sender's and our buffers, and passes later.
    pub fn stall(&self, direction: Direction, stalled: bool) {
        self.change(direction, |faults| faults.stalled = stalled);
    }

    /// [`stall`](Self::stall) in both directions.
    pub fn stall_all(&self, stalled: bool) {
        self.stall(Direction::ToTarget, stalled);
        self.stall(Direction::FromTarget, stalled);
    }

    /// Has bytes take `delay` and up to `jitter` longer, in each direction. Their order stays.
    pub fn delay(&self, delay: Duration, jitter: Duration) {
        self.change_both(|faults| (faults.delay, faults.jitter) = (delay, jitter));
    }

    /// Lets no more than so many bytes a second pass, in each direction of each connection; `None`
    /// lifts it. At least one passes.
    pub fn throttle(&self, bytes_per_second: Option<u32>) {
        self.change_both(|faults| faults.bytes_per_second = bytes_per_second.map(|b| b.max(1)));
    }

    /// Flips a bit of each byte with this probability, in one direction.
    pub fn corrupt(&self, direction: Direction, probability: f64) {
        let probability = probability.clamp(0.0, 1.0);
        self.change(direction, |faults| faults.corruption = probability);
    }

    /// Ends one direction of every open connection in order; the other one goes on.
    pub fn half_close(&self, direction: Direction) {
        self.change(direction, |faults| faults.half_closes += 1);
    }

    /// Lets `bytes` more pass in one direction of every open connection, and then cuts it.
    pub fn cut_after(&self, direction: Direction, bytes: u64, how: Cut) {
        self.change(direction, |faults| {
            let number = faults.passing.map_or(0, |(number, ..)| number) + 1;
            faults.passing = Some((number, bytes, how));
        });
    }

    /// Ends every fault; connections that were cut stay so.
    pub fn heal(&self) {
        self.refuse(false);
        self.change_both(|faults| {
            *faults = Faults {
                half_closes: faults.half_closes,
                passing: faults.passing,
                ..Faults::default()
            };
        });
    }

    fn change(&self, direction: Direction, change: impl FnOnce(&mut Faults)) {
        self.orders.send_modify(|orders| {
            let [to_target, from_target] = &mut orders.directions;
            change(match direction {
                Direction::ToTarget => to_target,
                Direction::FromTarget => from_target,
            });
        });
    }

    fn change_both(&self, change: impl Fn(&mut Faults)) {
        self.change(Direction::ToTarget, &change);
        self.change(Direction::FromTarget, &change);
    }
}

/// The proxy's task.
struct Serving {
    target: SocketAddr,
    orders: watch::Receiver<Orders>,
    open: Arc<AtomicUsize>,
    random: SmallRng,
}

impl Serving {
    async fn run(mut self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = connections.join_next() => {}
                connection = listener.accept() => {
                    let Ok((client, _)) = connection else { continue };
                    if self.orders.borrow().refusing {
                        let _ = client.set_zero_linger();
                        continue;
                    }
                    let connection = Connection {
                        orders: self.orders.clone(),
                        random: SmallRng::seed_from_u64(self.random.random()),
                        _counted: Counted::new(&self.open),
                    };
                    connections.spawn(connection.carry(client, self.target));
                }
            }
        }
    }
}

/// Counts an open connection for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A socket that is reset when it is dropped before it ended well.
struct Resetting {
    socket: TcpStream,
    ended: bool,
}

impl Resetting {
    fn new(socket: TcpStream) -> Self {
        let _ = socket.set_nodelay(true);
        Self {
            socket,
            ended: false,
        }
    }

    /// Ends it in order. What its peer still says is read, as far as it has come: unread bytes
    /// would turn the end into a reset.
    async fn finish(&mut self) {
        self.ended = true;
        let _ = self.socket.shutdown().await;
        let mut unread = vec![0; CHUNK];
        while let Ok(1..) = self.socket.try_read(&mut unread) {}
    }
}

impl Drop for Resetting {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.socket.set_zero_linger();
        }
    }
}

struct Connection {
    orders: watch::Receiver<Orders>,
    random: SmallRng,
    _counted: Counted,
}

impl Connection {
    async fn carry(mut self, client: TcpStream, target: SocketAddr) {
        let began = *self.orders.borrow();
        let mut client = Resetting::new(client);
        let Ok(target) = TcpStream::connect(target).await else {
            return;
        };
        let mut target = Resetting::new(target);
        let how = {
            let (from_client, to_client) = client.socket.split();
            let (from_target, to_target) = target.socket.split();
            let mut pipe = |direction| Pipe {
                direction,
                began: began.of(direction),
                orders: self.orders.clone(),
                random: SmallRng::seed_from_u64(self.random.random()),
            };
            let up = pipe(Direction::ToTarget).carry(from_client, to_target);
            let down = pipe(Direction::FromTarget).carry(from_target, to_client);
            let mut orders = self.orders.clone();
            tokio::select! {
                biased;
                cut = orders.wait_for(|orders| orders.cuts != began.cuts) => {
                    cut.ok().and_then(|orders| orders.how).unwrap_or(Cut::Reset)
                }
                ended = async { tokio::try_join!(up, down) } => match ended {
                    Ok(_) => Cut::Finish,
                    Err(how) => how,
                },
            }
        };
        if how == Cut::Finish {
            client.finish().await;
            target.finish().await;
        }
    }
}

/// Bytes on their way, and when they are due.
struct Chunk {
    bytes: Vec<u8>,
    due: Instant,
}

/// One direction of one connection. Ends with `Ok` when the sender has ended it, with how the whole
/// connection ends otherwise.
struct Pipe {
    direction: Direction,
    began: Faults,
    orders: watch::Receiver<Orders>,
    random: SmallRng,
}

impl Pipe {
    async fn carry(self, from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), Cut> {
        let (direction, began) = (self.direction, self.began);
        let (chunks, waiting) = mpsc::channel(IN_FLIGHT);
        let (mut closing, orders) = (self.orders.clone(), self.orders.clone());
        let carrying = async {
            tokio::try_join!(
                self.read(from, chunks),
                write(direction, orders, waiting, &mut to)
            )
        };
        let closed =
            closing.wait_for(|orders| orders.of(direction).half_closes != began.half_closes);
        tokio::select! {
            biased;
            _ = closed => {}
            ended = carrying => { ended?; }
        }
        to.shutdown().await.map_err(|_| Cut::Reset)
    }

    /// Takes bytes in, and says when they are due.
    async fn read(
        mut self,
        mut from: ReadHalf<'_>,
        chunks: mpsc::Sender<Chunk>,
    ) -> Result<(), Cut> {
        let mut last_due = Instant::now();
        let mut buffer = vec![0; CHUNK];
        loop {
            let faults = self.orders.borrow().of(self.direction);
            let most = faults.bytes_per_second.map_or(CHUNK, |rate| {
                // A twentieth of a second's at once, so that it drips.
                usize::try_from(rate / 20).unwrap_or(CHUNK).clamp(1, CHUNK)
            });
            let room = buffer.get_mut(..most).ok_or(Cut::Reset)?;
            let read = from.read(room).await.map_err(|_| Cut::Reset)?;
            if read == 0 {
                return Ok(());
            }
            let mut bytes = room.get(..read).ok_or(Cut::Reset)?.to_vec();
            let faults = self.orders.borrow().of(self.direction);
            if faults.corruption > 0.0 {
                for byte in &mut bytes {
                    if self.random.random_bool(faults.corruption) {
                        *byte ^= 1 << self.random.random_range(0..8);
                    }
                }
            }
            let late = faults.delay + faults.jitter.mul_f64(self.random.random());
            let mut due = last_due.max(Instant::now() + late);
            if let Some(rate) = faults.bytes_per_second {
                due += Duration::from_secs_f64(read as f64 / f64::from(rate));
            }
            last_due = due;
            let sent = chunks.send(Chunk { bytes, due }).await;
            sent.map_err(|_| Cut::Reset)?;
        }
    }
}

/// Lets bytes out when they are due, and the direction is not held up.
async fn write(
    direction: Direction,
    mut orders: watch::Receiver<Orders>,
    mut waiting: mpsc::Receiver<Chunk>,
    to: &mut WriteHalf<'_>,
) -> Result<(), Cut> {
    let mut passing = orders.borrow().of(direction).passing;
    let mut number = passing.take().map_or(0, |(number, ..)| number);
    while let Some(Chunk { mut bytes, due }) = waiting.recv().await {
        // The timer would add its own millisecond to what is due already.
        if due > Instant::now() {
            sleep_until(due).await;
        }
        let flows = orders.wait_for(|orders| !orders.of(direction).stalled);
        let faults = flows.await.map_err(|_| Cut::Reset)?.of(direction);
        if let Some(ordered) = faults.passing.filter(|(ordered, ..)| *ordered != number) {
            (number, passing) = (ordered.0, Some(ordered));
        }
        let mut end = None;
        if let Some((_, left, how)) = &mut passing {
            let take = usize::try_from(*left).unwrap_or(usize::MAX);
            if bytes.len() >= take {
                bytes.truncate(take);
                end = Some(*how);
            }
            *left = left.saturating_sub(bytes.len() as u64);
        }
        to.write_all(&bytes).await.map_err(|_| Cut::Reset)?;
        if let Some(how) = end {
            return Err(how);
        }
    }
    Ok(())
}
