//! The faults of a network, as the proxy makes them between real sockets.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

use std::{io::ErrorKind, time::Duration};

use governance_stream::simulator::proxy::{Cut, Direction, Proxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A connection through the proxy: our end, and the target's.
struct Line {
    listener: TcpListener,
    proxy: Proxy,
    near: TcpStream,
    far: TcpStream,
}

impl Line {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let target = listener.local_addr().expect("bound");
        let proxy = Proxy::start_seeded(target, 7).await.expect("listens");
        let (near, far) = connect(&proxy, &listener).await;
        Self {
            listener,
            proxy,
            near,
            far,
        }
    }

    async fn another(&mut self) {
        (self.near, self.far) = connect(&self.proxy, &self.listener).await;
    }
}

async fn connect(proxy: &Proxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let near = TcpStream::connect(proxy.address()).await.expect("listens");
    let (far, _) = listener.accept().await.expect("carried");
    (near, far)
}

async fn takes(socket: &mut TcpStream, expected: &[u8]) {
    let mut taken = vec![0; expected.len()];
    let reading = timeout(PATIENCE, socket.read_exact(&mut taken)).await;
    reading.expect("in time").expect("passes");
    assert_eq!(taken, expected);
}

async fn says(socket: &mut TcpStream, bytes: &[u8]) {
    socket.write_all(bytes).await.expect("open");
}

/// How a socket ends: in order, or with an error.
async fn end(socket: &mut TcpStream) -> Result<(), ErrorKind> {
    let mut rest = Vec::new();
    let reading = timeout(PATIENCE, socket.read_to_end(&mut rest)).await;
    let read = reading.expect("ends in time");
    read.map(|_| assert!(rest.is_empty(), "{rest:?}"))
        .map_err(|error| error.kind())
}

/// Nothing comes, however long one waits: with time paused, the runtime has nothing else to do.
async fn is_silent(socket: &mut TcpStream) {
    let mut byte = [0];
    let read = timeout(Duration::from_secs(3600), socket.read(&mut byte)).await;
    assert!(read.is_err(), "{read:?}");
}

#[tokio::test]
async fn it_carries_both_ways_and_passes_an_end_on() {
    let mut line = Line::new().await;
    says(&mut line.near, b"ping").await;
    takes(&mut line.far, b"ping").await;
    says(&mut line.far, b"pong").await;
    takes(&mut line.near, b"pong").await;
    assert_eq!(line.proxy.connections(), 1);
    line.near.shutdown().await.expect("open");
    assert_eq!(end(&mut line.far).await, Ok(()));
    says(&mut line.far, b"still here").await;
    takes(&mut line.near, b"still here").await;
}

#[tokio::test]
async fn a_cut_ends_what_is_open_as_it_is_told_and_lets_others_come() {
    let mut line = Line::new().await;
    line.proxy.cut(Cut::Reset);
    for socket in [&mut line.near, &mut line.far] {
        assert_eq!(end(socket).await, Err(ErrorKind::ConnectionReset));
    }
    line.another().await;
    line.proxy.cut(Cut::Finish);
    for socket in [&mut line.near, &mut line.far] {
        assert_eq!(end(socket).await, Ok(()));
    }
    line.another().await;
    says(&mut line.near, b"again").await;
    takes(&mut line.far, b"again").await;
}

#[tokio::test]
async fn whoever_comes_while_it_refuses_is_reset_and_what_is_open_goes_on() {
    let mut line = Line::new().await;
    line.proxy.refuse(true);
    // Either the connection or the first read of it fails: the kernel had taken it.
    if let Ok(mut refused) = TcpStream::connect(line.proxy.address()).await {
        assert_eq!(end(&mut refused).await, Err(ErrorKind::ConnectionReset));
    }
    says(&mut line.near, b"open").await;
    takes(&mut line.far, b"open").await;
    line.proxy.refuse(false);
    line.another().await;
    says(&mut line.far, b"welcome").await;
    takes(&mut line.near, b"welcome").await;
}

#[tokio::test(start_paused = true)]
async fn a_stalled_direction_holds_everything_and_loses_nothing() {
    let mut line = Line::new().await;
    line.proxy.stall(Direction::ToTarget, true);
    says(&mut line.near, b"later").await;
    says(&mut line.far, b"now").await;
    takes(&mut line.near, b"now").await;
    is_silent(&mut line.far).await;
    line.proxy.stall(Direction::ToTarget, false);
    takes(&mut line.far, b"later").await;
    line.proxy.stall_all(true);
    says(&mut line.near, b"1").await;
    says(&mut line.far, b"2").await;
    is_silent(&mut line.far).await;
    is_silent(&mut line.near).await;
    line.proxy.heal();
    takes(&mut line.far, b"1").await;
    takes(&mut line.near, b"2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stalled_direction_holds_is_bounded() {
    let mut line = Line::new().await;
    line.proxy.stall(Direction::ToTarget, true);
    // Far more than the kernel's buffers and ours: the sender is held up before it is through.
    let flood = vec![7; 64 << 20];
    let mut writing = Box::pin(line.near.write_all(&flood));
    let held = timeout(Duration::from_millis(500), &mut writing).await;
    assert!(held.is_err(), "{held:?}");
    line.proxy.stall(Direction::ToTarget, false);
    let mut rest = vec![0; flood.len()];
    let (written, read) = tokio::join!(writing, line.far.read_exact(&mut rest));
    written.expect("passes");
    read.expect("passes");
    assert!(rest == flood, "something changed");
}

#[tokio::test(start_paused = true)]
async fn a_delay_takes_as_long_as_it_says_and_keeps_the_order() {
    let mut line = Line::new().await;
    let (delay, jitter) = (Duration::from_millis(200), Duration::from_millis(100));
    line.proxy.delay(delay, jitter);
    for number in 0..20 {
        let began = Instant::now();
        says(&mut line.near, &[number]).await;
        takes(&mut line.far, &[number]).await;
        let took = began.elapsed();
        assert!(
            delay <= took && took <= delay + jitter + Duration::from_millis(5),
            "{took:?}"
        );
    }
    let all: Vec<u8> = (0..100).collect();
    for byte in &all {
        says(&mut line.near, &[*byte]).await;
        tokio::task::yield_now().await;
    }
    takes(&mut line.far, &all).await;
}

#[tokio::test(start_paused = true)]
async fn a_throttle_lets_so_many_bytes_a_second_pass() {
    let mut line = Line::new().await;
    line.proxy.throttle(Some(10_000));
    let bytes = vec![1; 20_000];
    let began = Instant::now();
    says(&mut line.near, &bytes).await;
    takes(&mut line.far, &bytes).await;
    let took = began.elapsed().as_secs_f64();
    assert!((1.9..2.2).contains(&took), "{took} s");
}

#[tokio::test]
async fn corruption_flips_as_many_bytes_as_it_says_in_one_direction() {
    let mut line = Line::new().await;
    line.proxy.corrupt(Direction::ToTarget, 0.1);
    let clean = vec![0; 50_000];
    let mut carried = clean.clone();
    let (_, read) = tokio::join!(
        says(&mut line.near, &clean),
        timeout(PATIENCE, line.far.read_exact(&mut carried))
    );
    read.expect("in time").expect("passes");
    let flipped = carried.iter().filter(|byte| **byte != 0).count();
    assert!((4_500..5_500).contains(&flipped), "{flipped} of 50000");
    assert!(carried.iter().all(|byte| byte.count_ones() <= 1));
    says(&mut line.far, &clean[..100]).await;
    takes(&mut line.near, &clean[..100]).await;
}

#[tokio::test]
async fn a_half_close_ends_one_direction_and_leaves_the_other() {
    let mut line = Line::new().await;
    line.proxy.half_close(Direction::FromTarget);
    assert_eq!(end(&mut line.near).await, Ok(()));
    says(&mut line.near, b"onwards").await;
    takes(&mut line.far, b"onwards").await;
    // It was for what was open then.
    line.another().await;
    says(&mut line.far, b"hello").await;
    takes(&mut line.near, b"hello").await;
}

#[tokio::test]
async fn it_cuts_after_exactly_so_many_bytes() {
    let mut line = Line::new().await;
    says(&mut line.near, b"before").await;
    takes(&mut line.far, b"before").await;
    line.proxy.cut_after(Direction::ToTarget, 4, Cut::Finish);
    says(&mut line.near, b"four and more").await;
    takes(&mut line.far, b"four").await;
    assert_eq!(end(&mut line.far).await, Ok(()));
    line.another().await;
    says(&mut line.near, b"all of it").await;
    takes(&mut line.far, b"all of it").await;
}

#[tokio::test]
async fn its_end_ends_everything() {
    let Line {
        proxy,
        mut near,
        mut far,
        ..
    } = Line::new().await;
    let address = proxy.address();
    drop(proxy);
    assert_eq!(end(&mut near).await, Err(ErrorKind::ConnectionReset));
    assert_eq!(end(&mut far).await, Err(ErrorKind::ConnectionReset));
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, refused)
        .await
        .expect("it listens no more");
}
