//! The real binary, driven from outside over real sockets.
//!
//! - `accepts`: what a sender posts rightly is acknowledged, kept and passed on unchanged
//! - `rejects`: every other answer
//! - `http2_abuse`: HTTP/2 as nobody of good will speaks it
//! - `hardening`: what a relay gives away to strangers and to its host, and how little it needs
//! - `scanned`: tools that others wrote to break servers
//! - `smuggling`: HTTP/1.1 that can be read in two ways hides no second request
//! - `delivers`: what a target gets, and what happens when it does not take it
//! - `schemes`: what others verify what a target gets with, and how secrets are rotated
//! - `restarts`: `kill -9` under load loses nothing that was acknowledged
//! - `durability`: seen from the kernel, a sync comes before each 2xx
//! - `full_disk`: no room refuses new webhooks and damages nothing
//! - `hung_disk`: a disk that does not answer is said by the probes
//! - `broken_disk`: a disk that fails, turns read-only, or is gone
//! - `damage`: a record that decayed is named in the log
//! - `store_commands`: a data directory checked, counted and copied while no relay runs
//! - `hang_up`: a sender that leaves cancels nothing
//! - `language`: what a table can ask and say, in a running relay
//! - `reload`: files that change while it runs
//! - `reload_load`: the same under load, often
//! - `torture`: the proof that operators run on their own disk
//! - `certificates`: several of them, by name, and their renewal while it runs
//! - `client_certificates`: senders that show one, and sources that want one
//! - `edge`: who is at the other end, and what follows from it
//! - `floods`: HTTP as no honest sender speaks it
//! - `tls`: versions, protocols, certificates that can't be served
//! - `acme`: a certificate that an authority gives, without anybody's doing
//! - `starts_and_stops`: what keeps it from starting, and the order in which it ends
//! - `systemd`: what a service manager gives and is told
//! - `upgrades`: a relay replaced under load, and nobody refused
//! - `admin`: probes and metrics
//! - `logs`: what strangers can write into it, and its level
//! - `traces`: what a webhook's trace tells, and a receiver of traces that is away
//! - `asks`: what an operator asks of a running relay
//! - `health`: what a container's health check asks
//! - `guards`: who may ask that: the token, and what a request must and must not bring
//! - `openapi`: what is answered is what the document of the API says
//! - `stories`: what became of a webhook, and dead letters brought back
//! - `erases`: a webhook whose bytes have to go
//! - `explains`: what a table does, told without sending anything
//! - `sbom`: the bill of materials names all that is compiled into the program
//! - `shipped`: the files in the repository are good
//! - `command_line`: what an operator types, and exit statuses
//! - `alerts`: each fires, keeps still, and leads to what to do
//! - `dashboards`: what it asks for is found by a real Prometheus that scrapes a real relay
//! - `reference`: the page that Prometheus reads is what is written of it
//! - `manuals`: completions and manual pages are of use to what they are for
//! - `units`: the units for systemd are good
//! - `containers`: the image, built without a registry and run as it says
//! - `kubernetes`: what is described there is what Kubernetes takes and the binary is
//! - `debian`: the package, what is in it, and what it leaves behind
//! - `deployed`: what `deploy` names exists in the binary
//!
//! `RELAY_TEST_PATIENCE` is how many seconds a test waits for what must happen, `RELAY_TEST_ROUNDS`
//! how often `restarts` kills the relay, `RELAY_TEST_RELOADS` how often `reload_load` reloads it,
//! `RELAY_TEST_SLOW_CONNECTIONS` how many slow ones `scanned` opens, `RELAY_TEST_UPGRADES` how often `upgrades`
//! replaces it, `RELAY_TEST_STATIC_PROGRAM` which program `containers` and `kubernetes` put into their image,
//! `RELAY_TEST_PICTURE` for how many seconds of load `dashboards` draws its picture anew. A test whose tool is missing
//! fails, unless `RELAY_TEST_MAY_SKIP` is set.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "helpers of tests may fail loudly; the tests have their own settings"
)]

mod accepts;
mod acme;
mod admin;
mod alerts;
mod asks;
mod backlogs;
mod broken_disk;
mod certificates;
mod client_certificates;
mod command_line;
mod containers;
mod crowds;
mod damage;
mod dashboards;
mod debian;
mod delivers;
mod deployed;
mod durability;
mod edge;
mod erases;
mod explains;
mod floods;
mod full_disk;
mod guards;
mod hang_up;
mod hardening;
mod health;
mod holding;
mod http2_abuse;
mod hung_disk;
mod kubernetes;
mod language;
mod logs;
mod manuals;
mod openapi;
mod reference;
mod rejects;
mod reload;
mod reload_load;
mod replays;
mod restarts;
mod sbom;
mod scanned;
mod schemes;
mod shipped;
mod smuggling;
mod starts_and_stops;
mod store_commands;
mod stories;
mod support;
mod systemd;
mod tls;
mod torture;
mod traces;
mod units;
mod upgrades;
