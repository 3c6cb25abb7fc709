//! What `deploy/kubernetes` describes: Kubernetes takes it, its parts fit each other, and a pod as it is
//! described runs.
//!
//! It is put together by `kubectl kustomize` and held against the schemas of the oldest and the newest Kubernetes that
//! it is for, without a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use boon::{Compiler, Schemas};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::support::container::{Container, Image, Mount};
use crate::support::metrics::Metrics;
use crate::support::relay::{BINARY, command, folder, run};
use crate::support::sender::get;
use crate::support::tools::{can_go_on, has};
use crate::support::{AUTHORITY, eventually};

/// What can be applied.
const OVERLAYS: [&str; 2] = ["single", "sidecar"];

/// What is told to be needed, and what is newest.
const VERSIONS: [&str; 2] = ["1.30", "1.37"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes").join(name)
}

fn documents(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(yaml);
    documents.map(|document| Value::deserialize(document).unwrap()).collect()
}

fn kustomize(folder: &Path) -> Vec<Value> {
    let built = run(command("kubectl").arg("kustomize").arg(folder).env("HOME", folder));
    assert_eq!((built.code, &*built.stderr), (Some(0), ""), "{}", built.stdout);
    documents(&built.stdout)
}

/// Everything that an overlay comes to, with the component for the Prometheus operator.
fn rendered(overlay: &str) -> Vec<Value> {
    let folder = folder();
    // Relative is how it wants its resources.
    let up = "../".repeat(folder.path().components().count() - 1);
    let at = |name: &str| format!("{up}{}", path(name).display()).replace("//", "/");
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [at(overlay)],
        "components": [at("prometheus-operator")],
    });
    fs::write(folder.path().join("kustomization.yaml"), kustomization.to_string()).unwrap();
    kustomize(folder.path())
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

#[track_caller]
fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

/// Something of a list, by its name.
#[track_caller]
fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("no {name}: {list:?}"))
}

fn relay(pod: &Value) -> &Value {
    named(&pod["containers"], "aryeo-relay")
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The schemas of one version, and where in them each kind is.
struct Definitions {
    schemas: Schemas,
    compiler: Compiler,
    places: BTreeMap<(String, String), String>,
}

impl Definitions {
    const ID: &str = "https://kubernetes.io/api/_definitions.json";

    #[track_caller]
    fn of(version: &str) -> Option<Self> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let file = target.join(format!("tools/kubernetes/{version}.json"));
        let what = format!("no {}: `tests/all --prepare` fetches it", file.display());
        if !can_go_on(file.exists(), &what) {
            return None;
        }
        let all: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let mut places = BTreeMap::new();
        for (name, definition) in all["$defs"].as_object().unwrap() {
            for kind in list(&definition["x-kubernetes-group-version-kind"]) {
                let text = |key: &str| kind[key].as_str().unwrap().to_owned();
                let api = format!("{}/{}", text("group"), text("version"));
                let api = api.trim_start_matches('/').to_owned();
                places.insert((api, text("kind")), format!("{}#/$defs/{name}", Self::ID));
            }
        }
        let mut compiler = Compiler::new();
        compiler.add_resource(Self::ID, all).unwrap();
        Some(Self { schemas: Schemas::new(), compiler, places })
    }

    fn complaint(&mut self, object: &Value) -> Option<String> {
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        let kind = (text("apiVersion"), text("kind"));
        let Some(place) = self.places.get(&kind) else { return Some(format!("no {kind:?}")) };
        let schema = self.compiler.compile(place, &mut self.schemas).unwrap();
        self.schemas.validate(object, schema).err().map(|error| format!("{error:#}"))
    }
}

#[test]
fn kubernetes_takes_every_object() {
    if !has("kubectl", "--help") {
        return;
    }
    let mut objects: Vec<Value> = OVERLAYS.iter().flat_map(|name| rendered(name)).collect();
    for name in ["secrets.example.yaml", "store-check.yaml"] {
        objects.extend(documents(&fs::read_to_string(path(name)).unwrap()));
    }
    for version in VERSIONS {
        let Some(mut definitions) = Definitions::of(version) else { return };
        let ours = objects.iter().filter(|object| object["kind"] != "ServiceMonitor");
        let mut count = 0;
        for object in ours {
            let complaint = definitions.complaint(object);
            assert_eq!(complaint, None, "{version}: {object}");
            count += 1;
        }
        assert_eq!(count, 2 * 5 + 2, "{objects:?}");
        // It would say so.
        let mut wrong = one(&rendered("single"), "StatefulSet").clone();
        wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = json!({});
        let complaint = definitions.complaint(&wrong).unwrap();
        assert!(complaint.contains("readynessProbe"), "{complaint}");
    }
}

/// Every selector selects, and every name that one part calls another by is one.
#[test]
fn the_parts_fit_each_other() {
    if !has("kubectl", "--help") {
        return;
    }
    for overlay in OVERLAYS {
        let objects = rendered(overlay);
        let set = &one(&objects, "StatefulSet")["spec"];
        let template = &set["template"];
        let pod = &template["spec"];
        let labels = template["metadata"]["labels"].as_object().unwrap();
        let selects = |selector: &Value| {
            let mut wanted = selector.as_object().unwrap().iter();
            assert!(wanted.len() > 0 && wanted.all(|(key, value)| labels.get(key) == Some(value)));
        };
        selects(&set["selector"]["matchLabels"]);
        selects(&one(&objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]);
        let services = of_kind(&objects, "Service");
        assert!(services.iter().any(|one| one["metadata"]["name"] == set["serviceName"]));
        for service in &services {
            selects(&service["spec"]["selector"]);
            for port in list(&service["spec"]["ports"]) {
                named(&relay(pod)["ports"], port["targetPort"].as_str().unwrap());
            }
        }
        for probe in ["livenessProbe", "readinessProbe"] {
            let port = relay(pod)[probe]["httpGet"]["port"].as_str().unwrap();
            named(&relay(pod)["ports"], port);
        }
        policed(&one(&objects, "NetworkPolicy")["spec"], pod);
        for mount in list(&relay(pod)["volumeMounts"]) {
            assert_eq!(mount["subPath"], Value::Null, "it is never renewed: {mount}");
        }
        // Behind something that ends TLS there is none.
        assert_eq!(named(&pod["volumes"], "tls")["secret"]["optional"], true);
        let routes = named(&pod["volumes"], "routes");
        assert_eq!(routes["configMap"]["name"], one(&objects, "ConfigMap")["metadata"]["name"]);

        let monitor = one(&objects, "ServiceMonitor");
        let wanted = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
        let watched: Vec<_> = services
            .iter()
            .filter(|service| {
                let labels = &service["metadata"]["labels"];
                wanted.iter().all(|(key, value)| labels[key] == *value)
            })
            .collect();
        assert_eq!(watched.len(), 1, "{wanted:?}");
        for endpoint in list(&monitor["spec"]["endpoints"]) {
            named(&watched[0]["spec"]["ports"], endpoint["port"].as_str().unwrap());
            let keys: Vec<_> = endpoint.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["interval", "path", "port"], "what the operator knows");
        }
    }
}

/// A policy holds for all containers of a pod: each of their ports is let in, and nothing else. Only the relay's way
/// out is known.
#[track_caller]
fn policed(policy: &Value, pod: &Value) {
    let containers = || list(&pod["containers"]);
    let ports = containers().flat_map(|one| list(&one["ports"])).map(|port| &port["name"]);
    let ports: BTreeSet<_> = ports.map(|name| name.as_str().unwrap()).collect();
    let open = list(&policy["ingress"]).flat_map(|rule| list(&rule["ports"]));
    let open: BTreeSet<_> = open.map(|port| port["port"].as_str().unwrap()).collect();
    assert_eq!(open, ports);
    let is_alone = containers().count() == 1;
    let types = if is_alone { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
    assert_eq!(policy["policyTypes"], types);
    assert_eq!(policy["egress"].is_array(), is_alone);
}

/// Rules that are there as comments are good ones, too.
#[test]
fn a_collector_on_the_node_needs_only_a_comment_taken_away() {
    let policy = fs::read_to_string(path("base/networkpolicy.yaml")).unwrap();
    let policy = &documents(&policy.replace("#-", "-").replace("#    -", "    -"))[0];
    let mut ports = list(&policy["spec"]["egress"]).flat_map(|rule| list(&rule["ports"]));
    assert!(ports.any(|port| port["port"] == 4318), "{policy}");
    let Some(mut definitions) = Definitions::of(VERSIONS[0]) else { return };
    assert_eq!(definitions.complaint(policy), None);
}

#[test]
fn the_tables_are_good_and_their_secrets_are_told() {
    if !has("kubectl", "--help") {
        return;
    }
    let secrets = documents(&fs::read_to_string(path("secrets.example.yaml")).unwrap());
    let secret = &secrets[0];
    for overlay in OVERLAYS {
        let objects = rendered(overlay);
        let map = one(&objects, "ConfigMap");
        // The name that stays is what a pod follows.
        assert_eq!(map["metadata"]["name"], "aryeo-relay-routes");
        let table = map["data"]["routes.yaml"].as_str().unwrap();
        let folder = folder();
        let file = folder.path().join("routes.yaml");
        fs::write(&file, table).unwrap();
        let checked = run(command(BINARY).args(["check", "--no-secrets"]).arg(&file));
        assert_eq!(checked.code, Some(0), "{overlay}: {checked:?}");
        let named_files = table.split("file: /secrets/").skip(1);
        let keys: Vec<&str> =
            named_files.map(|rest| rest.split([' ', '}', ']']).next().unwrap()).collect();
        assert!(!keys.is_empty());
        // The example is of `single`; its values are for the operator to fill in.
        for key in keys.iter().filter(|_| overlay == "single") {
            assert_eq!(secret["stringData"][key], "", "{key} is not in the example");
        }
        let pod = &one(&objects, "StatefulSet")["spec"]["template"]["spec"];
        let volume = named(&pod["volumes"], "secrets");
        assert_eq!(volume["secret"]["secretName"], secret["metadata"]["name"]);
    }
}

/// What the strictest of Kubernetes' own standards for pods wants, and a root that can't be written.
#[test]
fn pods_have_no_rights_and_time_to_stop() {
    if !has("kubectl", "--help") {
        return;
    }
    let help = run(command(BINARY).args(["serve", "--help"])).stdout;
    let stop = help.split("--shutdown-timeout").nth(1).unwrap();
    let stop = stop.split("[default: ").nth(1).unwrap().split("s]").next().unwrap();
    let stop: u64 = stop.parse().unwrap();
    for overlay in OVERLAYS {
        let objects = rendered(overlay);
        let pod = &one(&objects, "StatefulSet")["spec"]["template"]["spec"];
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(grace > stop && grace < 2 * stop, "{grace} s of grace, {stop} s to stop");
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for container in list(&pod["containers"]) {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{container}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{container}");
            assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }), "{container}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{container}");
        }
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(relay(pod)["image"], format!("aryeo-relay:{version}"));
    }
}

/// By default Kubernetes waits until the pod that is broken is ready before it makes it anew.
#[test]
fn a_pod_that_can_not_start_is_replaced_by_what_is_applied() {
    if !has("kubectl", "--help") {
        return;
    }
    for overlay in OVERLAYS {
        let objects = rendered(overlay);
        let set = &one(&objects, "StatefulSet")["spec"];
        assert_eq!(set["podManagementPolicy"], "Parallel", "{overlay}");
        // Two would share nothing but their name, and each has a store of its own.
        assert_eq!(set["replicas"], 1, "{overlay}");
    }
}

/// It has the rights and the volume of the pod that it stands in for.
#[test]
fn the_pod_that_looks_at_the_store_is_as_the_relay_s_own() {
    if !has("kubectl", "--help") {
        return;
    }
    let objects = rendered("single");
    let set = one(&objects, "StatefulSet");
    let known = &set["spec"]["template"]["spec"];
    let look = &documents(&fs::read_to_string(path("store-check.yaml")).unwrap())[0];
    assert_eq!(look["metadata"]["labels"], Value::Null, "a service would lead to it");
    let pod = &look["spec"];
    for key in ["securityContext", "automountServiceAccountToken", "enableServiceLinks"] {
        assert_eq!(pod[key], known[key], "{key}");
    }
    for key in ["image", "securityContext", "resources"] {
        assert_eq!(relay(pod)[key], relay(known)[key], "{key}");
    }
    let data = |pod: &Value| named(&relay(pod)["volumeMounts"], "data").clone();
    assert_eq!(data(pod), data(known));
    let claim = &set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"];
    let claim =
        format!("{}-{}-0", claim.as_str().unwrap(), set["metadata"]["name"].as_str().unwrap());
    let volume = named(&pod["volumes"], "data");
    assert_eq!(volume["persistentVolumeClaim"]["claimName"], claim);
}

/// A folder as the kubelet fills it from a ConfigMap or a Secret: links that are swapped all at once.
struct Projected {
    folder: PathBuf,
    versions: usize,
}

impl Projected {
    fn new(folder: PathBuf, files: &BTreeMap<String, String>, group: u32) -> Self {
        fs::create_dir(&folder).unwrap();
        let mut projected = Self { folder, versions: 0 };
        projected.put(files, group);
        for name in files.keys() {
            symlink(Path::new("..data").join(name), projected.folder.join(name)).unwrap();
        }
        projected
    }

    fn put(&mut self, files: &BTreeMap<String, String>, group: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        self.versions += 1;
        let version = format!("..version_{}", self.versions);
        let into = self.folder.join(&version);
        fs::create_dir(&into).unwrap();
        for (name, text) in files {
            fs::write(into.join(name), text).unwrap();
            fs::set_permissions(into.join(name), fs::Permissions::from_mode(0o440)).unwrap();
            chown(into.join(name), Some(0), Some(group)).unwrap();
        }
        symlink(version, self.folder.join("..data_tmp")).unwrap();
        fs::rename(self.folder.join("..data_tmp"), self.folder.join("..data")).unwrap();
    }
}

fn texts(map: &Value) -> BTreeMap<String, String> {
    let entries = map.as_object().unwrap().iter();
    entries.map(|(name, text)| (name.clone(), text.as_str().unwrap().to_owned())).collect()
}

#[test]
fn a_pod_as_described_is_ready_answers_its_operator_and_takes_another_table() {
    if !has("kubectl", "--help") {
        return;
    }
    let Some(image) = Image::build() else { return };
    let objects = rendered("single");
    let pod = &one(&objects, "StatefulSet")["spec"]["template"]["spec"];
    let group = u32::try_from(pod["securityContext"]["fsGroup"].as_u64().unwrap()).unwrap();
    let user = pod["securityContext"]["runAsUser"].as_u64().unwrap();
    assert_eq!(image.config["User"], format!("{user}:{group}"));

    // What the volumes have in them.
    let secrets = documents(&fs::read_to_string(path("secrets.example.yaml")).unwrap());
    let mut secrets = texts(&secrets[0]["stringData"]);
    for (name, value) in &mut secrets {
        // Base64, as one of the schemes wants it.
        *value = name.replace('-', "").repeat(8);
    }
    let identity = AUTHORITY.server();
    let tls = [("tls.crt", identity.certificate), ("tls.key", identity.key)];
    let tls = tls.map(|(name, text)| (name.to_owned(), text)).into_iter().collect();
    let table = texts(&one(&objects, "ConfigMap")["data"]);
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let mut routes = Projected::new(at("routes"), &table, group);
    for (name, files) in [("secrets", &secrets), ("tls", &tls)] {
        Projected::new(at(name), files, group);
    }
    fs::create_dir(at("data")).unwrap();
    chown(at("data"), Some(0), Some(group)).unwrap();
    fs::set_permissions(at("data"), std::os::unix::fs::PermissionsExt::from_mode(0o2775)).unwrap();

    let mounts: Vec<Mount> = list(&relay(pod)["volumeMounts"])
        .map(|mount| Mount {
            from: at(mount["name"].as_str().unwrap()),
            at: mount["mountPath"].as_str().unwrap().to_owned(),
            read_only: mount["readOnly"] == true,
        })
        .collect();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut environment: Vec<(String, String)> = list(&relay(pod)["env"])
        .map(|variable| (text(&variable["name"]), text(&variable["value"])))
        // Ports of its own: this machine's may be taken.
        .map(|(name, value)| (name, value.replace(":9464", ":0")))
        .collect();
    environment.push(("RELAY_LISTEN".to_owned(), "127.0.0.1:0".to_owned()));
    assert_eq!(relay(pod)["args"], json!(image.words("Cmd")));
    let container = Container::start(&image, &mounts, &environment);
    let (_, admin) = container.addresses();
    for probe in ["livenessProbe", "readinessProbe"] {
        let path = relay(pod)[probe]["httpGet"]["path"].as_str().unwrap();
        let is_well = || get(admin, path).is_ok_and(|answer| answer.status == 200);
        eventually(&format!("{probe} is well"), is_well);
    }

    // As by `kubectl exec`; without the token nobody is told anything.
    let address = format!("0.0.0.0:{}", admin.port());
    let asked = container
        .execute(&["/usr/bin/aryeo-relay", "targets", "list"], &[("RELAY_ADMIN", &address)]);
    assert_eq!(asked.code, Some(0), "{asked:?}");
    assert!(asked.stdout.contains("billing") && asked.stdout.contains("crm"), "{asked:?}");
    assert_eq!(get(admin, "/api/v1/targets").unwrap().status, 401);

    // Another table in the ConfigMap.
    let hashes = || {
        let page = String::from_utf8(get(admin, "/metrics").unwrap().body).unwrap();
        Metrics::parse(page).labels("relay_routes_info", "sha256")
    };
    assert_eq!(hashes().len(), 1);
    let mut other = table;
    other.get_mut("routes.yaml").unwrap().push_str("unrouted: drop\n");
    routes.put(&other, group);
    eventually("it takes another table", || hashes().len() == 2);
}
