//! The image of `deploy/container`: built without a registry, looked at, and run as it says.
//!
//! Its program is the tests' own with its libraries beside it, for a static one is another build of everything:
//! `tests/all --long` makes it, and then the image is as operators have it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::delivers::walk;
use crate::support::container::{Container, Image, Mount};
use crate::support::receiver::Options;
use crate::support::relay::{BINARY, command, folder, run};
use crate::support::sender::{Connection, get};
use crate::support::vectors::listing_delivered;
use crate::support::{AUTHORITY, Receiver, Reply, Request, eventually};

/// The user of the image.
const USER: u32 = 65532;

/// A table whose secrets are files, and whose target has to show a certificate by the image's roots.
fn table(crm: &Receiver) -> String {
    format!(
        "sources:\n  aryeo:\n    path: /webhooks/aryeo\n    \
         verify: {{ scheme: aryeo, secrets: [{{ file: secret }}] }}\n\
         targets:\n  crm: {{ url: '{}', sign: {{ scheme: none }} }}\n\
         routes:\n  - {{ name: all, to: [crm] }}\n",
        crm.url()
    )
}

/// Folders as an orchestrator mounts them: what is secret for the group that the container has.
struct Mounts {
    folder: TempDir,
}

impl Mounts {
    fn new(table: &str) -> Self {
        let folder = folder();
        let identity = AUTHORITY.server();
        for (name, text) in [
            ("config/routes.yaml", table),
            ("config/secret", crate::support::routes::SECRET),
            ("tls/tls.crt", &identity.certificate),
            ("tls/tls.key", &identity.key),
        ] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
            chown(&path, Some(0), Some(USER)).unwrap();
        }
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        chown(&data, Some(USER), Some(USER)).unwrap();
        Self { folder }
    }

    fn all(&self) -> Vec<Mount> {
        let mount = |name: &str| Mount {
            from: self.folder.path().join(name),
            at: format!("/{name}"),
            read_only: name != "data",
        };
        ["config", "tls", "data"].map(mount).into_iter().collect()
    }
}

/// At ports of their own, told to the container as to `serve`.
fn anywhere() -> Vec<(String, String)> {
    [("LISTEN", "127.0.0.1:0"), ("ADMIN", "127.0.0.1:0"), ("LOG_FORMAT", "json")]
        .map(|(name, value)| (format!("RELAY_{name}"), value.to_owned()))
        .to_vec()
}

#[test]
fn the_image_has_the_relay_and_the_roots_and_says_how_it_runs() {
    let Some(image) = Image::build() else { return };
    let config = &image.config;
    assert_eq!(config["User"], format!("{USER}:{USER}"));
    assert_eq!(image.words("Entrypoint"), ["/usr/bin/aryeo-relay"]);
    assert_eq!(image.words("Cmd"), ["serve"]);
    assert_eq!(config["Volumes"], serde_json::json!({ "/data": {} }));
    let check = &config["Healthcheck"];
    assert_eq!(check["Test"], serde_json::json!(["CMD", "/usr/bin/aryeo-relay", "health"]));
    // `health` gives up after two seconds by itself.
    assert_eq!(check["Timeout"], 3_000_000_000_u64);
    let exposed = serde_json::json!({ "8443/tcp": {}, "9464/tcp": {} });
    assert_eq!(config["ExposedPorts"], exposed);
    assert!(image.environment().contains(&("PATH", "/usr/bin")));

    fits_serve(&image);

    let files: BTreeSet<PathBuf> = walk(&image.root).into_iter().collect();
    let expected = ["usr/bin/aryeo-relay", "etc/ssl/certs/ca-certificates.crt"];
    let expected: BTreeSet<PathBuf> = expected.iter().map(|name| image.root.join(name)).collect();
    let others: Vec<_> = files.difference(&expected).collect();
    assert!(files.is_superset(&expected), "{files:?}");
    let is_library = |path: &Path| path.to_string_lossy().contains(".so");
    assert!(others.iter().all(|path| !image.is_static && is_library(path)), "{others:?}");
    for file in &files {
        let found = fs::metadata(file).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7022), (0, 0), "{}", file.display());
    }
    let data = fs::metadata(image.root.join("data")).unwrap();
    assert_eq!((data.uid(), data.gid()), (USER, USER));
}

#[test]
fn a_container_with_a_read_only_root_takes_webhooks_in_and_is_well() {
    let Some(image) = Image::build() else { return };
    let crm = Options::default().tls(&["http/1.1"], false).start(|_| Reply::Status(200));
    let mounts = Mounts::new(&table(&crm));
    let container = Container::start(&image, &mounts.all(), &anywhere());
    let (listen, admin) = container.addresses();
    let answers = |path: &str| get(admin, path).is_ok_and(|answer| answer.status == 200);
    eventually("it is ready", || answers("/readyz"));
    assert!(answers("/livez"));

    let tls = AUTHORITY.client_config(&[&rustls::version::TLS13], &["http/1.1"]);
    let mut sender = Connection::open(listen, Some(tls)).unwrap();
    sender.send(&Request::signed(&listing_delivered("1"))).unwrap().accepted();
    crm.wait_for(1);

    // The image's own health check; it is told of the port that this test has not chosen.
    let admin = admin.to_string();
    let check = image.config["Healthcheck"]["Test"].as_array().unwrap();
    let check: Vec<&str> = check.iter().skip(1).map(|word| word.as_str().unwrap()).collect();
    let well = container.execute(&check, &[("RELAY_ADMIN", &admin)]);
    assert_eq!((well.code, &*well.stdout), (Some(0), "alive\n"), "{well:?}");
    let unwell = container.execute(&check, &[("RELAY_ADMIN", "127.0.0.1:1")]);
    assert_eq!(unwell.code, Some(1), "{unwell:?}");

    let written = fs::write(container.path("/elsewhere"), "").unwrap_err();
    assert_eq!(written.kind(), ErrorKind::ReadOnlyFilesystem);
    let store = fs::metadata(mounts.folder.path().join("data/relay")).unwrap();
    assert_eq!((store.uid(), store.mode() & 0o777), (USER, 0o700));
}

/// Behind something that ends TLS a pod has an empty folder where the certificate would be.
#[test]
fn without_a_certificate_it_serves_plain_http_or_says_what_is_missing() {
    let Some(image) = Image::build() else { return };
    let crm = Options::default().tls(&["http/1.1"], false).start(|_| Reply::Status(200));
    let mounts = Mounts::new(&table(&crm));
    for file in ["tls/tls.crt", "tls/tls.key"] {
        fs::remove_file(mounts.folder.path().join(file)).unwrap();
    }
    let refused = image.run(&mounts.all(), &["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let said = refused.stdout;
    assert!(said.contains("/tls/tls.crt") && said.contains("--plain-http"), "{said}");

    let mut environment = anywhere();
    environment.push(("RELAY_PLAIN_HTTP".to_owned(), "true".to_owned()));
    let container = Container::start(&image, &mounts.all(), &environment);
    let (listen, _) = container.addresses();
    let mut sender = Connection::open(listen, None).unwrap();
    sender.send(&Request::signed(&listing_delivered("1"))).unwrap().accepted();
    crm.wait_for(1);
}

/// Without a folder of its own for temporary files, and a root that can't be written.
#[test]
fn a_container_looks_at_the_store_of_a_relay_that_is_gone() {
    let Some(image) = Image::build() else { return };
    let crm = Options::default().tls(&["http/1.1"], false).start(|_| Reply::Status(200));
    let mounts = Mounts::new(&table(&crm));
    let container = Container::start(&image, &mounts.all(), &anywhere());
    let (listen, _) = container.addresses();
    let tls = AUTHORITY.client_config(&[&rustls::version::TLS13], &["http/1.1"]);
    let mut sender = Connection::open(listen, Some(tls)).unwrap();
    sender.send(&Request::signed(&listing_delivered("1"))).unwrap().accepted();
    drop(container);

    let data = || mounts.all().into_iter().filter(|mount| mount.at == "/data").collect::<Vec<_>>();
    let look = |words: &[&str]| -> Value {
        let ended = image.run(&data(), &[&["store"], words, &["--format", "json"]].concat());
        assert_eq!(ended.code, Some(0), "{words:?}: {ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    };
    for words in [&["check"][..], &["stats"], &["backup", "--to", "/data/copy"]] {
        assert_eq!(look(words)["webhooks"], 1, "{words:?}");
    }
    // What they needed beside the store is gone.
    let left = fs::read_dir(mounts.folder.path().join("data")).unwrap();
    let left: BTreeSet<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["copy", "relay"].map(OsString::from).into());
}

/// What the image sets and exposes is what `serve` reads.
fn fits_serve(image: &Image) {
    let help = run(command(BINARY).args(["serve", "--help"])).stdout;
    let general = ["PATH", "TMPDIR"];
    for (name, _) in image.environment().iter().filter(|(name, _)| !general.contains(name)) {
        assert!(help.contains(&format!("[env: {name}]")), "serve does not read {name}");
    }
    for port in image.config["ExposedPorts"].as_object().unwrap().keys() {
        let port = port.strip_suffix("/tcp").unwrap();
        assert!(help.contains(&format!(":{port}]")), "no default of serve has the port {port}");
    }
}
