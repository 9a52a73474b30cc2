//! Links, addresses and routes over netlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use crate::error::{Doing as _, Error, Result};
use crate::record::Link;

/// Runs `act` with a netlink socket of the network namespace that the calling thread is in, on a thread of its own: the
/// caller's may drive a runtime, in which no other one can be started.
pub(crate) fn with<T: Send>(act: impl AsyncFnOnce(Handle) -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| with_here(act));
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The same on the calling thread, which must drive no runtime: for what changes the thread's own namespaces.
pub(crate) fn with_here<T>(act: impl AsyncFnOnce(Handle) -> Result<T>) -> Result<T> {
    let what = || "open a netlink socket".to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .doing(what)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().doing(what)?;
        tokio::select! {
            biased;
            result = act(handle) => result,
            () = connection => Err(Error::io(what(), io::Error::other("it closed"))),
        }
    })
}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |source| Error::Net {
        what: what.into(),
        source: Box::new(source),
    }
}

fn is_errno(error: &rtnetlink::Error, wanted: rustix::io::Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -wanted.raw_os_error())
}

/// Success, also when what was to be made is there already.
fn or_exists(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if is_errno(&error, rustix::io::Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// The index of a link, if it is there.
pub(crate) async fn index(net: &Handle, name: &str) -> Result<Option<u32>> {
    let mut found = net.link().get().match_name(name).execute();
    match found.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(error) if is_errno(&error, rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(failed(format!("look for the link `{name}`"))(error)),
    }
}

/// The names of all links.
pub(crate) async fn names(net: &Handle) -> Result<Vec<String>> {
    let mut links = net.link().get().execute();
    let mut names = Vec::new();
    while let Some(link) = links.try_next().await.map_err(failed("list links"))? {
        names.extend(link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        }));
    }
    Ok(names)
}

/// Makes a bridge with the host's address on it, or completes one; gives its index.
pub(crate) async fn ensure_bridge(net: &Handle, name: &str, address: Ipv4Addr, prefix: u8) -> Result<u32> {
    let what = format!("make the bridge `{name}`");
    let index = match index(net, name).await? {
        Some(index) => index,
        None => {
            // A bridge takes the lowest address of its ports and changes it with them, unless it has one of its own.
            let mac = Link::mac_of(address).to_vec();
            let bridge = LinkBridge::new(name).address(mac).build();
            or_exists(net.link().add(bridge).execute().await).map_err(failed(&*what))?;
            index_of(net, name).await?
        }
    };
    let add = net.address().add(index, IpAddr::V4(address), prefix);
    or_exists(add.execute().await).map_err(failed(format!("give `{name}` the address {address}")))?;
    let up = LinkUnspec::new_with_index(index).up().build();
    net.link().set(up).execute().await.map_err(failed(&*what))?;
    let forwarding = format!("/proc/sys/net/ipv4/conf/{name}/forwarding");
    fs_err::write(&forwarding, b"1").doing(|| format!("write `{forwarding}`"))?;
    Ok(index)
}

async fn index_of(net: &Handle, name: &str) -> Result<u32> {
    index(net, name)
        .await?
        .ok_or_else(|| Error::io(format!("find the link `{name}`"), io::ErrorKind::NotFound))
}

/// Removes a link; one that is not there is as good as removed.
pub(crate) async fn remove(net: &Handle, name: &str) -> Result<()> {
    let Some(index) = index(net, name).await? else {
        return Ok(());
    };
    match net.link().del(index).execute().await {
        Err(error) if is_errno(&error, rustix::io::Errno::NODEV) => Ok(()),
        other => other.map_err(failed(format!("remove the link `{name}`"))),
    }
}

/// Makes a machine's link: one end at the bridge, up; the other one in the network namespace `inside`.
pub(crate) async fn connect(net: &Handle, link: &Link, bridge: &str, inside: RawFd) -> Result<()> {
    let what = format!("make the link `{}`", link.host_end);
    let peer = LinkUnspec::new_with_name(&link.inner)
        .address(Link::mac_of(link.address).to_vec())
        .setns_by_fd(inside)
        .build();
    let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(&link.host_end)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .controller(index_of(net, bridge).await?)
        .up()
        .build();
    net.link().add(message).execute().await.map_err(failed(&*what))?;
    // Where bridged frames pass the packet filter (`bridge-nf-call-iptables`), a machine that calls its own virtual address is
    // sent back by the bridge itself, out of the port that it came in by.
    let port = LinkBridgePort::new(index_of(net, &link.host_end).await?)
        .hairpin(true)
        .build();
    net.link().set_port(port).execute().await.map_err(failed(what))
}

/// Configures the inner ends, in the machine's network namespace.
pub(crate) async fn configure(net: &Handle, links: &[Link]) -> Result<()> {
    up(net, "lo").await?;
    for link in links {
        let index = up(net, &link.inner).await?;
        net.address()
            .add(index, IpAddr::V4(link.address), link.prefix)
            .execute()
            .await
            .map_err(failed(format!("give the machine the address {}", link.address)))?;
        if link.is_default {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .gateway(link.gateway)
                .build();
            let what = format!("route the machine by way of {}", link.gateway);
            net.route().add(route).execute().await.map_err(failed(what))?;
        }
    }
    Ok(())
}

async fn up(net: &Handle, name: &str) -> Result<u32> {
    let index = index_of(net, name).await?;
    let message = LinkUnspec::new_with_index(index).up().build();
    let what = format!("take the link `{name}` up");
    net.link().set(message).execute().await.map_err(failed(what))?;
    Ok(index)
}

/// Adds an address to a link, or finds it there.
pub(crate) async fn add_address(net: &Handle, link: &str, address: Ipv4Addr) -> Result<()> {
    let add = net
        .address()
        .add(index_of(net, link).await?, IpAddr::V4(address), 32);
    or_exists(add.execute().await).map_err(failed(format!("give `{link}` the address {address}")))
}

/// Takes an address from a link; one that is not there is as good as taken.
pub(crate) async fn remove_address(net: &Handle, link: &str, address: Ipv4Addr) -> Result<()> {
    let Some(index) = index(net, link).await? else {
        return Ok(());
    };
    let what = format!("take the address {address} from `{link}`");
    let mut found = net
        .address()
        .get()
        .set_link_index_filter(index)
        .set_address_filter(IpAddr::V4(address))
        .execute();
    while let Some(message) = found.try_next().await.map_err(failed(&*what))? {
        match net.address().del(message).execute().await {
            Err(error) if is_errno(&error, rustix::io::Errno::ADDRNOTAVAIL) => {}
            other => other.map_err(failed(&*what))?,
        }
    }
    Ok(())
}

/// Makes sure of a bridge from outside of this crate: the host's own network.
pub(crate) fn bridge_now(name: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
    with(async |net| ensure_bridge(&net, name, address, prefix).await.map(drop))
}
