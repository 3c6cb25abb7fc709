//! Names to addresses without the C library, so that a fully static build resolves them too.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// How long one address may take to connect while there are others to try.
pub const CONNECT_SLICE: Duration = Duration::from_secs(2);

/// How often the system's files are looked at for changes.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// A name that was missing may appear: ask again soon.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(5);

/// Why a name has no addresses.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It can't be a host's name.
    #[error("{host:?} is not a host name")]
    BadName {
        /// The text.
        host: String,
    },
    /// It is not in the hosts file, and there is nobody to ask.
    #[error("{host} is not in {hosts}, and no name server is known: {reason}")]
    NoServers {
        /// The name.
        host: String,
        /// The hosts file.
        hosts: String,
        /// Why there is none.
        reason: String,
    },
    /// The name servers were asked in vain.
    #[error("{host} can't be resolved: {source}")]
    Failed {
        /// The name.
        host: String,
        /// What they said.
        source: NetError,
    },
}

/// Resolves names by `/etc/hosts`, then by the name servers of `/etc/resolv.conf`.
///
/// The files are read at first use, and again after they change. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Resolver {
    shared: Arc<Shared>,
}

struct Shared {
    hosts: PathBuf,
    resolv_conf: PathBuf,
    look_again: Duration,
    loaded: Mutex<Option<Loaded>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = formatter.debug_struct("Shared");
        debug.field("hosts", &self.hosts).field("resolv_conf", &self.resolv_conf);
        debug.finish_non_exhaustive()
    }
}

/// When the two files were changed last.
type Stamp = [Option<SystemTime>; 2];

struct Loaded {
    stamp: Stamp,
    looked: Instant,
    sources: Sources,
}

#[derive(Clone)]
struct Sources {
    hosts: Arc<Hosts>,
    servers: Result<TokioResolver, Arc<str>>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::with_files("/etc/hosts".into(), "/etc/resolv.conf".into())
    }
}

impl Resolver {
    /// A resolver by other files than the system's.
    pub fn with_files(hosts: PathBuf, resolv_conf: PathBuf) -> Self {
        Self::looking_every(LOOK_AGAIN, hosts, resolv_conf)
    }

    fn looking_every(look_again: Duration, hosts: PathBuf, resolv_conf: PathBuf) -> Self {
        let loaded = Mutex::new(None);
        Self { shared: Arc::new(Shared { hosts, resolv_conf, look_again, loaded }) }
    }

    /// The addresses of a host, at least one. An address is its own; `localhost` is this machine.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
        let with_port = |address: IpAddr| SocketAddr::new(address, port);
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(vec![with_port(address)]);
        }
        if is_localhost(host) {
            return Ok(vec![
                with_port(Ipv4Addr::LOCALHOST.into()),
                with_port(Ipv6Addr::LOCALHOST.into()),
            ]);
        }
        let name =
            Name::from_ascii(host).map_err(|_| ResolveError::BadName { host: host.to_owned() })?;
        let sources = self.shared.sources();
        let known = by_hosts(&sources.hosts, &name);
        if !known.is_empty() {
            return Ok(known.into_iter().map(with_port).collect());
        }
        let servers = sources.servers.map_err(|reason| ResolveError::NoServers {
            host: host.to_owned(),
            hosts: self.shared.hosts.display().to_string(),
            reason: reason.to_string(),
        })?;
        match servers.lookup_ip(name).await {
            Ok(found) => Ok(found.iter().map(with_port).collect()),
            Err(source) => Err(ResolveError::Failed { host: host.to_owned(), source }),
        }
    }
}

/// RFC 6761: never asked of anybody.
fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn by_hosts(hosts: &Hosts, name: &Name) -> Vec<IpAddr> {
    [RecordType::A, RecordType::AAAA]
        .into_iter()
        .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.to_lowercase(), kind)))
        .flat_map(|found| {
            found.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>()
        })
        .collect()
}

impl Shared {
    fn sources(&self) -> Sources {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &mut *loaded {
            if loaded.looked.elapsed() < self.look_again {
                return loaded.sources.clone();
            }
            loaded.looked = Instant::now();
            if loaded.stamp == self.stamp() {
                return loaded.sources.clone();
            }
        }
        let stamp = self.stamp();
        let sources = Sources { hosts: Arc::new(self.read_hosts()), servers: self.read_servers() };
        *loaded = Some(Loaded { stamp, looked: Instant::now(), sources: sources.clone() });
        sources
    }

    fn stamp(&self) -> Stamp {
        [&self.hosts, &self.resolv_conf]
            .map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
    }

    /// An absent or broken hosts file is an empty one, as for the C library.
    fn read_hosts(&self) -> Hosts {
        let mut hosts = Hosts::default();
        let read = File::open(&self.hosts).and_then(|file| hosts.read_hosts_conf(file));
        if let Err(error) = read
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.hosts.display(), %error, "hosts file not readable");
        }
        hosts
    }

    fn read_servers(&self) -> Result<TokioResolver, Arc<str>> {
        let path = self.resolv_conf.display();
        let text = fs::read(&self.resolv_conf).map_err(|error| format!("{path}: {error}"))?;
        let (config, mut options) =
            parse_resolv_conf(text).map_err(|error| format!("{path}: {error}"))?;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.use_hosts_file = ResolveHosts::Never;
        options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map_err(|error| format!("{path}: {error}").into())
    }
}

/// Connects to the first address that answers, in order; all but the last have `slice` each.
///
/// The caller bounds the whole. The error is the last address's.
pub async fn connect(addresses: &[SocketAddr], slice: Duration) -> io::Result<TcpStream> {
    let Some((last, others)) = addresses.split_last() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no address"));
    };
    for address in others {
        if let Ok(Ok(stream)) = timeout(slice, TcpStream::connect(address)).await {
            return Ok(stream);
        }
    }
    TcpStream::connect(last).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn files(hosts: &str, resolv_conf: Option<&str>) -> (tempfile::TempDir, Resolver) {
        let directory = tempfile::tempdir().unwrap();
        let hosts_file = directory.path().join("hosts");
        File::create(&hosts_file).unwrap().write_all(hosts.as_bytes()).unwrap();
        let conf_file = directory.path().join("resolv.conf");
        if let Some(text) = resolv_conf {
            fs::write(&conf_file, text).unwrap();
        }
        let resolver = Resolver::with_files(hosts_file, conf_file);
        (directory, resolver)
    }

    #[tokio::test]
    async fn addresses_and_localhost_need_no_server() {
        let (_directory, resolver) = files("", None);
        for (host, expected) in [
            ("127.0.0.1", vec!["127.0.0.1:80"]),
            ("::1", vec!["[::1]:80"]),
            ("[2001:db8::1]", vec!["[2001:db8::1]:80"]),
            ("localhost", vec!["127.0.0.1:80", "[::1]:80"]),
            ("LocalHost.", vec!["127.0.0.1:80", "[::1]:80"]),
            ("a.localhost", vec!["127.0.0.1:80", "[::1]:80"]),
        ] {
            let expected: Vec<SocketAddr> = expected.iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(resolver.resolve(host, 80).await.unwrap(), expected, "{host}");
        }
    }

    #[tokio::test]
    async fn the_hosts_file_comes_first_and_without_servers_last() {
        let hosts = "10.1.2.3 crm.internal CRM2.internal # note\nfd00::1 crm.internal\nrubbish\n";
        let (_directory, resolver) = files(hosts, None);
        let expected: Vec<SocketAddr> =
            vec!["10.1.2.3:443".parse().unwrap(), "[fd00::1]:443".parse().unwrap()];
        assert_eq!(resolver.resolve("crm.internal", 443).await.unwrap(), expected);
        assert_eq!(resolver.resolve("CRM2.internal", 443).await.unwrap()[0], expected[0]);
        let error = resolver.resolve("billing.internal", 443).await.unwrap_err();
        assert!(matches!(error, ResolveError::NoServers { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("billing.internal") && text.contains("resolv.conf"), "{text}");
    }

    #[tokio::test]
    async fn a_file_without_servers_says_so() {
        let (_directory, resolver) = files("", Some("search example.com\n"));
        let error = resolver.resolve("a.example.com", 1).await.unwrap_err();
        assert!(matches!(error, ResolveError::NoServers { .. }), "{error}");
        assert!(error.to_string().contains("no nameservers"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_a_name_is_refused() {
        let (_directory, resolver) = files("", None);
        let long = "a".repeat(64);
        for host in [long.as_str(), "a..b"] {
            let error = resolver.resolve(host, 1).await.unwrap_err();
            assert!(matches!(error, ResolveError::BadName { .. }), "{host}: {error}");
        }
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again() {
        let (directory, resolver) = files("10.0.0.1 crm\n", None);
        let hosts = directory.path().join("hosts");
        let one = resolver.resolve("crm", 1).await.unwrap();
        let eager = Resolver::looking_every(Duration::ZERO, hosts.clone(), hosts.clone());
        assert_eq!(eager.resolve("crm", 1).await.unwrap(), one);
        fs::write(&hosts, "10.0.0.2 crm\n").unwrap();
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
        File::options().write(true).open(&hosts).unwrap().set_modified(later).unwrap();
        assert_eq!(resolver.resolve("crm", 1).await.unwrap(), one, "not looked at yet");
        assert_eq!(eager.resolve("crm", 1).await.unwrap(), ["10.0.0.2:1".parse().unwrap()]);
    }

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_refuses() {
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shut = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (good, bad) = (open.local_addr().unwrap(), shut.local_addr().unwrap());
        drop(shut);
        let stream = connect(&[bad, good], CONNECT_SLICE).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(connect(&[bad, bad], CONNECT_SLICE).await.is_err());
        assert!(connect(&[], CONNECT_SLICE).await.is_err());
    }
}
