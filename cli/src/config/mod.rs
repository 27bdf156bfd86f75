//! Configuration files: TOML, every key known, and one line that says which file, which line and what.

mod gateway;
mod key;
mod node;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use lunette_control::state::{self, NameKind};
use serde::de::DeserializeOwned;

use crate::admin::Address;
use crate::failure::one_line;

pub(crate) use gateway::GatewayConfig;
pub(crate) use key::ClusterKey;
pub(crate) use node::{ControlConfig, DiskConfig, NodeConfig};

/// The longest file that is read: a configuration is a page, not a device that never ends.
const BYTES_MAX: u64 = 1 << 20;

/// Reads and parses `path`.
fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read(path)?;
    parse(&text, path)
}

fn read(path: &Path) -> Result<String> {
    let name = path.display();
    let cannot = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => anyhow!("{name} does not exist: write it, or name another file"),
        ErrorKind::InvalidData => anyhow!("{name} is not a text file"),
        _ => anyhow!("{name} cannot be read: {error}"),
    };
    let length = fs::metadata(path).map_err(cannot)?;
    if !length.is_file() {
        bail!("{name} is not a file");
    }
    if length.len() > BYTES_MAX {
        bail!("{name} is too long for a configuration file");
    }
    let text = fs::read_to_string(path).map_err(cannot)?;
    if text.trim().is_empty() {
        bail!("{name} is empty: write it again, see docs/operations.md");
    }
    Ok(text)
}

fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let wrong = match error.message() {
            "invalid socket address syntax" => {
                "write ADDR:PORT, such as \"10.0.0.1:3260\" or \"[fd00::1]:3260\""
            }
            wrong => wrong,
        };
        let key = key_before(before).map(|key| format!("{key}: ")).unwrap_or_default();
        anyhow!("{}:{line}: {key}{}", path.display(), one_line(wrong))
    })
}

/// The key whose value begins where a text ends, or goes on there over several lines.
fn key_before(text: &str) -> Option<&str> {
    let (key, value) = text.lines().rev().find_map(|line| line.split_once('='))?;
    let key = key.trim();
    let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let is_value = text.trim_end().ends_with(['=', '[', ',']) || value.trim_start().starts_with('[');
    (is_key && is_value).then_some(key)
}

/// Refuses a name that the control plane would refuse later.
fn check_name(kind: NameKind, name: &str, file: &Path) -> Result<()> {
    state::check_name(kind, name).map_err(|error| anyhow!("{}: name: {error}", file.display()))
}

/// Paths in a file are relative to the file, so that it does not matter from where it is used.
fn beside(file: &Path, path: &Path) -> PathBuf {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    file.parent().unwrap_or(Path::new("/")).join(path)
}

/// The addresses of the control plane's members.
fn addresses(admin: &[String], file: &Path) -> Result<Vec<Address>> {
    if admin.is_empty() {
        bail!("{}: admin names no address: list where the control plane listens", file.display());
    }
    let parse =
        |text: &String| Address::parse(text).map_err(|error| anyhow!("{}: admin: {error}", file.display()));
    admin.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    const NODE: &str = r#"
name = "node1"
listen = "127.0.0.1:7500"
admin = ["127.0.0.1:7400"]
cluster_key_file = "cluster.key"

[[disks]]
path = "disk1"
capacity = "10G"
"#;

    fn in_file<T>(text: &str, then: impl FnOnce(&Path) -> T) -> T {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.toml");
        fs::write(&path, text).expect("written");
        then(&path)
    }

    fn node_error(text: &str) -> String {
        let error = in_file(text, |path| NodeConfig::load(path).expect_err("wrong on purpose"));
        let line = format!("{error:#}");
        assert!(!line.contains('\n'), "{line}");
        line
    }

    #[test]
    fn a_node_needs_little_and_paths_are_beside_the_file() {
        // Guards against paths that depend on where the command was started.
        in_file(NODE, |path| {
            let config = NodeConfig::load(path).expect("valid");
            assert_eq!(config.host, "node1");
            let [disk] = &config.disks[..] else { panic!("one disk") };
            assert_eq!(disk.path, path.parent().expect("a folder").join("disk1"));
            assert_eq!(disk.capacity.bytes(), 10 << 30);
            assert_eq!(config.listen, "127.0.0.1:7500".parse::<SocketAddr>().expect("an address"));
        });
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        // Guards against configurations that are half understood, and against errors without a place.
        let table = [
            (NODE.replace("name", "nmae"), "a.toml:2: unknown field `nmae`"),
            (NODE.replace("10G", "10X"), "a.toml:9: capacity: unknown unit 'X'"),
            (NODE.replace("\"10G\"", "0"), "a.toml:9: capacity: a size of 0"),
            (NODE.replace("127.0.0.1:7500", "localhost"), "a.toml:3: listen: write ADDR:PORT, such as"),
            (NODE.replace("[\"127.0.0.1:7400\"]", "[]"), "a.toml: admin names no address"),
            (NODE.replace("127.0.0.1:7400", "https://a:1"), "a.toml: admin: 'https' is not served"),
            (NODE.replace("name = \"node1\"", ""), "missing field `name`"),
            (NODE.replace("\"node1\"", "\"Node_1\""), "a.toml: name: \"Node_1\" is no node name"),
            (NODE.replace("\"node1\"", "\"\""), "a.toml: name: \"\" is no node name: it is empty"),
            (NODE[..NODE.len() - 5].to_owned(), "a.toml:9: "),
            (NODE[..40].to_owned(), "a.toml:3: "),
            (NODE.replace("[[disks]]", "[disks]"), "a.toml:7: "),
            (format!("{NODE}\n[[disks]]\npath = \"disk1\"\ncapacity = \"1G\"\n"), "two disks lie at"),
            (String::new(), "a.toml is empty"),
        ];
        for (text, want) in table {
            let got = node_error(&text);
            assert!(got.contains(want), "{got}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        // Guards against reading from a device for ever, and against a Rust error as the message.
        let missing = GatewayConfig::load(Path::new("/nonexistent/gateway.toml")).expect_err("missing");
        assert_eq!(
            missing.to_string(),
            "/nonexistent/gateway.toml does not exist: write it, or name another file"
        );
        let device = GatewayConfig::load(Path::new("/dev/zero")).expect_err("a device");
        assert_eq!(device.to_string(), "/dev/zero is not a file");
    }

    #[test]
    fn a_gateway_without_a_portal_is_refused() {
        // Guards against a gateway that runs and serves nobody.
        let text = "name = \"g\"\nportals = []\nadmin = [\"a\"]\ncluster_key_file = \"k\"\n";
        let error = in_file(text, |path| GatewayConfig::load(path).expect_err("no portal"));
        assert!(error.to_string().contains("portals is empty"), "{error}");
        let wrong = |portals: &str| {
            let text = text.replace("[]\nadmin", &format!("{portals}\nadmin"));
            in_file(&text, |path| GatewayConfig::load(path).expect_err("wrong portals")).to_string()
        };
        let [bad, twice] = ["[\"[::1]:1\",\n \"foo\"]", "[\"[::1]:1\", \"[::1]:1\"]"].map(wrong);
        assert!(bad.contains("a.toml:3: portals: write ADDR:PORT"), "{bad}");
        assert!(twice.contains("portals names [::1]:1 twice"), "{twice}");
    }
}
