//! Reading the arguments of `create_vm`: pure, refuses what cannot be.

use std::net::Ipv4Addr;

use serde::Deserialize;
use stolos_base::instance::is_segment_name;
use stolos_cpi::{CloudProperties, Kind, Network, Networks};

use crate::error::{Error, Result};
use crate::record::{Link, Size};

/// The least memory in MiB with which a machine's own programs start.
const LEAST_RAM: u64 = 32;

/// The size that `cloud_properties` ask for.
pub(crate) fn size(properties: &CloudProperties) -> Result<Size> {
    #[derive(Deserialize)]
    struct Asked {
        cpu: f64,
        ram: u64,
        #[serde(default)]
        ephemeral_disk_size: u64,
        #[serde(default = "Size::default_pids")]
        pids: u64,
    }
    let asked: Asked = serde_json::from_value(properties.clone().into()).map_err(|error| {
        refuse(format!(
            "cloud_properties of a machine are {{cpu, ram, ephemeral_disk_size}}: {error}"
        ))
    })?;
    if !(asked.cpu > 0.0 && asked.cpu.is_finite()) || asked.ram < LEAST_RAM || asked.pids == 0 {
        return Err(refuse(format!(
            "a machine needs some cpu, at least {LEAST_RAM} MiB of ram and one process, not {} cpu, {} MiB, {} pids",
            asked.cpu, asked.ram, asked.pids
        )));
    }
    Ok(Size {
        cpu: asked.cpu,
        ram: asked.ram,
        ephemeral_disk_size: asked.ephemeral_disk_size,
        pids: asked.pids,
    })
}

/// The links that the networks ask for; names of host ends are chosen later.
pub(crate) fn links(networks: &Networks) -> Result<Vec<Link>> {
    let mut links = Vec::new();
    for (name, network) in networks {
        let inner = format!("eth{}", links.len());
        links.push(link(name, network, inner).map_err(|why| refuse(format!("network `{name}`: {why}")))?);
    }
    if links.is_empty() {
        return Err(refuse("a machine needs a network".to_owned()));
    }
    // The director says which network is the default for what; a single one is it for all.
    if !links.iter().any(|link| link.is_default) {
        links[0].is_default = true;
    }
    Ok(links)
}

fn link(name: &str, network: &Network, inner: String) -> Result<Link, String> {
    if network.kind.as_deref().is_some_and(|kind| kind != "manual") {
        return Err("only networks of type manual can be had on this host".to_owned());
    }
    let segment = network
        .cloud_properties
        .get("segment")
        .and_then(|value| value.as_str());
    let segment = segment.ok_or("cloud_properties need a `segment`")?;
    if !is_segment_name(segment) {
        return Err(format!(
            "`{segment}` is not one to six lower-case letters or digits"
        ));
    }
    let address = ipv4("ip", network.ip.as_deref())?;
    let gateway = ipv4("gateway", network.gateway.as_deref())?;
    let prefix = prefix(network)?;
    let net = ipnet::Ipv4Net::new(gateway, prefix).map_err(|error| error.to_string())?;
    if !net.contains(&address) || address == gateway {
        return Err(format!(
            "address {address} is not one of {} beside the gateway",
            net.trunc()
        ));
    }
    let default = network.default.as_deref().unwrap_or_default();
    Ok(Link {
        network: name.to_owned(),
        segment: segment.to_owned(),
        host_end: String::new(),
        inner,
        address,
        prefix,
        gateway,
        is_default: default.iter().any(|what| what == "gateway"),
        dns: network.dns.clone().unwrap_or_default(),
    })
}

fn ipv4(what: &str, text: Option<&str>) -> Result<Ipv4Addr, String> {
    let text = text.ok_or_else(|| format!("`{what}` is missing"))?;
    text.parse().map_err(|_| format!("`{text}` is no IPv4 address"))
}

fn prefix(network: &Network) -> Result<u8, String> {
    let written = network.other.get("prefix").map(|value| match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    if let Some(text) = written {
        return text
            .parse()
            .ok()
            .filter(|prefix| (8..=30).contains(prefix))
            .ok_or_else(|| format!("`{text}` is no prefix length from 8 to 30"));
    }
    let mask = ipv4("netmask", network.netmask.as_deref())?;
    ipnet::ipv4_mask_to_prefix(mask).map_err(|_| format!("`{mask}` is no netmask"))
}

fn refuse(text: String) -> Error {
    Error::refuse(Kind::VmCreationFailed, text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(network: serde_json::Value, expect: Result<&str, &str>) {
        let networks: Networks = serde_json::from_value(json!({ "n": network })).expect("networks");
        match (links(&networks), expect) {
            (Ok(links), Ok(range)) => assert_eq!(links[0].range(), range),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (other, _) => panic!("{other:?}"),
        }
    }

    #[test]
    fn networks_are_read_or_refused_with_words() {
        let good = json!({"type": "manual", "ip": "10.1.2.3", "netmask": "255.255.255.0", "gateway": "10.1.2.1",
            "cloud_properties": {"segment": "c1"}});
        let with = |key: &str, value: serde_json::Value| {
            let mut changed = good.clone();
            changed[key] = value;
            changed
        };
        check(good.clone(), Ok("10.1.2.0/24"));
        check(with("prefix", json!("16")), Ok("10.1.0.0/16"));
        check(with("type", json!("dynamic")), Err("manual"));
        check(with("ip", json!("10.9.9.9")), Err("10.9.9.9"));
        check(with("ip", json!("10.1.2.1")), Err("beside the gateway"));
        check(with("netmask", json!("255.0.255.0")), Err("netmask"));
        check(with("gateway", json!(null)), Err("`gateway` is missing"));
        check(
            with("cloud_properties", json!({"segment": "TOO-LONG"})),
            Err("TOO-LONG"),
        );
        check(with("cloud_properties", json!({})), Err("segment"));
    }

    #[test]
    fn sizes_are_read_or_refused() {
        let read = |value: serde_json::Value| size(value.as_object().expect("an object"));
        assert_eq!(
            read(json!({"cpu": 2, "ram": 512})).expect("a size").pids,
            Size::default_pids()
        );
        for bad in [
            json!({}),
            json!({"cpu": 0, "ram": 512}),
            json!({"cpu": 1, "ram": 1}),
            json!({"cpu": "x", "ram": 512}),
        ] {
            read(bad).expect_err("no size");
        }
    }
}
