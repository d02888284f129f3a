//! Requests that may come in a short time: a token bucket for each key, or for each address where no keys are wanted.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// Clients that are told apart before any that are done with are forgotten.
const FEW: usize = 4096;
/// Clients that are told apart at most; further ones share as many buckets as are left for the crowd. Whoever has so many
/// networks (a /48 of version 6 has as many) can empty those, and who comes anew meanwhile is refused with them: memory is
/// bounded, fairness among strangers is not. Keys have buckets of their own.
const MANY: usize = 65_536;
/// Buckets of the crowd.
const CROWD: u64 = 4096;

/// So many requests in a second, a minute or an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: NonZeroU32,
    per: Unit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
}

/// Why a text is no rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no rate; write how many requests and in which time, as 100/s, 600/m or 5000/h (up to 1000000 a second)"
)]
pub struct RateError(String);

/// Most requests of a rate: a thousand million would leave less than a nanosecond for each.
const FASTEST: u32 = 1_000_000;

impl Unit {
    const ALL: [Self; 3] = [Self::Second, Self::Minute, Self::Hour];

    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Second => &["s", "sec", "second"],
            Self::Minute => &["m", "min", "minute"],
            Self::Hour => &["h", "hour"],
        }
    }

    fn seconds(self) -> u32 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
        }
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let read = || {
            let (count, unit) = text.trim().split_once('/')?;
            let count: NonZeroU32 = count.trim().parse().ok()?;
            let per = Unit::ALL.into_iter().find(|per| per.names().contains(&unit.trim()))?;
            (count.get() / per.seconds() <= FASTEST).then_some(Self { count, per })
        };
        read().ok_or_else(|| RateError(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.per.names()[0])
    }
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// How fast it fills.
    pub rate: Rate,
    /// What it holds: requests that may come at once.
    pub burst: NonZeroU32,
}

impl RateLimit {
    /// One that holds what comes in two seconds, at least one request.
    pub fn new(rate: Rate) -> Self {
        let burst = rate.count.get().saturating_mul(2) / rate.per.seconds();
        Self { rate, burst: NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN) }
    }

    fn quota(&self) -> Quota {
        let each = Duration::from_secs(self.rate.per.seconds().into()) / self.rate.count.get();
        Quota::with_period(each).expect("a rate is never so fast that this is 0").allow_burst(self.burst)
    }
}

impl Default for RateLimit {
    /// A hundred a second, two hundred at once.
    fn default() -> Self {
        Self::new(Rate { count: NonZeroU32::new(100).expect("100 is not 0"), per: Unit::Second })
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} at once", self.rate, self.burst)
    }
}

/// The bucket of one key.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) limit: RateLimit,
    limiter: DefaultDirectRateLimiter,
}

impl Bucket {
    pub(crate) fn new(limit: RateLimit) -> Self {
        Self { limit, limiter: RateLimiter::direct(limit.quota()) }
    }

    /// Takes one request out of it.
    ///
    /// # Errors
    /// The time until there is another.
    pub(crate) fn take(&self) -> Result<(), Duration> {
        self.limiter.check().map_err(|until| until.wait_time_from(DefaultClock::default().now()))
    }
}

/// Whose bucket it is, where no keys are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    /// An address; of version 6 its network, of which whoever has one address has all (RFC 6177).
    Address(IpAddr),
    /// One of many more than are told apart.
    Crowd(u16),
}

/// The buckets of addresses; bounded, however many come.
pub(crate) struct Addresses {
    pub(crate) limit: RateLimit,
    limiter: RateLimiter<Client, HashMapStateStore<Client>, DefaultClock>,
    /// Buckets at which those that are full again are looked for.
    tidy_at: AtomicUsize,
    /// Requests that came while there were so many.
    asked: AtomicUsize,
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Addresses {
    pub(crate) fn new(limit: RateLimit) -> Self {
        Self {
            limit,
            limiter: RateLimiter::hashmap(limit.quota()),
            tidy_at: AtomicUsize::new(FEW),
            asked: AtomicUsize::new(0),
        }
    }

    /// Takes one request out of an address's bucket. This machine's own are not limited: they are the tools, tests and
    /// proxies of whoever runs the gateway.
    ///
    /// # Errors
    /// The time until there is another.
    pub(crate) fn take(&self, address: IpAddr) -> Result<(), Duration> {
        let address = address.to_canonical();
        if address.is_loopback() {
            return Ok(());
        }
        let client = self.client(network(address));
        self.limiter.check_key(&client).map_err(|until| until.wait_time_from(DefaultClock::default().now()))
    }

    fn client(&self, network: IpAddr) -> Client {
        if self.limiter.len() < self.tidy_at.load(Ordering::Relaxed) {
            return Client::Address(network);
        }
        // A look at all of them costs as much as thousands of requests, and is made no more often.
        if self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(FEW) {
            self.limiter.retain_recent(); // a bucket that is full again says no more than one that is not there
            self.tidy_at.store((self.limiter.len() * 2).clamp(FEW, MANY), Ordering::Relaxed);
        }
        if self.limiter.len() < MANY { Client::Address(network) } else { crowd(network) }
    }
}

fn crowd(network: IpAddr) -> Client {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    network.hash(&mut hasher);
    Client::Crowd((hasher.finish() % CROWD) as u16)
}

fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(rate: &str, burst: u32) -> RateLimit {
        RateLimit { rate: rate.parse().expect("a rate"), burst: NonZeroU32::new(burst).expect("not 0") }
    }

    #[test]
    fn rates_are_written_as_people_say_them() {
        for (text, shown, burst) in
            [("100/s", "100/s", 200), (" 600 / minute ", "600/m", 20), ("5000/h", "5000/h", 2), ("1/min", "1/m", 1)]
        {
            let rate: Rate = text.parse().expect(text);
            assert_eq!((rate.to_string().as_str(), RateLimit::new(rate).burst.get()), (shown, burst));
            RateLimit::new(rate).quota();
        }
        for text in ["", "100", "0/s", "-1/s", "1.5/s", "100/d", "s/100", "5000000/s", "99999999999/h", "fast"] {
            let error = text.parse::<Rate>().expect_err(text).to_string();
            assert!(error.contains("100/s"), "{error}");
        }
        RateLimit::new("1000000/s".parse().expect("the fastest")).quota();
    }

    #[test]
    fn a_bucket_gives_what_it_holds_and_then_says_when_there_is_more() {
        let bucket = Bucket::new(limit("1/m", 3));
        let taken: Vec<_> = (0..4).map(|_| bucket.take()).collect();
        assert_eq!(taken.iter().filter(|taken| taken.is_ok()).count(), 3);
        let wait = taken[3].expect_err("it is empty");
        assert!(wait > Duration::from_secs(50) && wait <= Duration::from_secs(60), "{wait:?}");
    }

    #[test]
    fn a_network_of_version_6_is_one_client_and_this_machine_is_none() {
        let addresses = Addresses::new(limit("1/h", 1));
        let take = |address: &str| addresses.take(address.parse().expect("an address")).is_ok();
        assert!(take("2001:db8::1"));
        assert!(!take("2001:db8::ffff"));
        assert!(take("2001:db8:0:1::1"));
        assert!(take("192.0.2.1"));
        assert!(!take("::ffff:192.0.2.1"), "the same in the words of version 6");
        for here in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!((0..5).all(|_| take(here)), "{here}");
        }
    }

    #[test]
    fn a_hundred_thousand_addresses_take_bounded_memory() {
        let fast = Addresses::new(limit("1000000/s", 2));
        let slow = Addresses::new(limit("1/h", 2));
        for number in 0..100_000_u32 {
            let address = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
            fast.take(address).expect("a first request");
            let _ = slow.take(address);
        }
        assert!(fast.limiter.len() <= 3 * FEW, "{}: those that are full again are forgotten", fast.limiter.len());
        assert!(slow.limiter.len() <= MANY + CROWD as usize, "{}", slow.limiter.len());
        assert!(slow.limiter.len() > MANY / 2, "those that are not are kept");
    }
}
