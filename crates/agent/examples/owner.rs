//! Plays the host for a guest that runs under a VMM with vhost-vsock (QEMU in the lab): takes the agent's control
//! connection on vsock, and runs one container with its streams on this program's own.
//!
//! ```text
//! owner CID                                     Hello, facts, Shutdown
//! owner CID config.json DISK OFFSET:LENGTH...   and a container from EROFS layers on a disk, bottom layer first
//! ```

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nacre_protocol::ports::{CONTROL_PORT, STREAM_PORT};
use nacre_protocol::rpc::agent::{
    CreateContainerRequest, Empty, HelloRequest, Layer, LayeredRootfs, ProcessRequest, Rootfs, Stdio, rootfs,
};
use nacre_protocol::rpc::agent_ttrpc::AgentClient;
use nacre_protocol::stream::Token;
use tokio::io::AsyncWriteExt;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{Context as Timeout, with_duration};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [cid, container @ ..] = arguments.as_slice() else {
        bail!("usage: owner CID [CONFIG DISK LAYER...]")
    };
    let cid: u32 = cid.parse().context("CID")?;
    let begin = Instant::now();
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, CONTROL_PORT)).context("listen")?;
    let (control, peer) = listener.accept().await?;
    eprintln!("owner: {peer} connected after {:?}", begin.elapsed());
    let agent = AgentClient::new(Client::new(Socket::from(control)));

    let mut entropy = [0; 64];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut entropy)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let hello = HelloRequest {
        hostname: "guest".to_owned(),
        realtime_ns: i64::try_from(now.as_nanos())?,
        entropy: entropy.to_vec(),
        log_level: std::env::var("LOG_LEVEL").unwrap_or_default(),
        ..Default::default()
    };
    let reply = agent.hello(timeout(), &hello).await?;
    eprintln!("owner: {reply:?}");
    let status = match container {
        [] => 0,
        [config, disk, layers @ ..] => run(Arc::new(agent.clone()), cid, config, disk, layers).await?,
        _ => bail!("usage: owner CID [CONFIG DISK LAYER...]"),
    };
    agent.shutdown(timeout(), &Empty::new()).await?;
    Ok(ExitCode::from(u8::try_from(status)?))
}

async fn run(agent: Arc<AgentClient>, cid: u32, config: &str, disk: &str, layers: &[String]) -> Result<u32> {
    let tokens = [Token([1; 16]), Token([2; 16]), Token([3; 16])];
    let mut streams = Vec::new();
    for token in tokens {
        let mut stream = VsockStream::connect(VsockAddr::new(cid, STREAM_PORT)).await?;
        stream.write_all(&token.hello()).await?;
        streams.push(stream);
    }
    let stdio = Stdio {
        stdin: tokens[0].0.to_vec(),
        stdout: tokens[1].0.to_vec(),
        stderr: tokens[2].0.to_vec(),
        ..Default::default()
    };
    let layers = layers.iter().map(|layer| parse_layer(layer)).collect::<Result<_>>()?;
    let layered = LayeredRootfs { disk_id: disk.to_owned(), layers, ..Default::default() };
    let create = CreateContainerRequest {
        container_id: "c1".to_owned(),
        spec_json: std::fs::read(config)?,
        rootfs: Some(Rootfs { source: Some(rootfs::Source::Layered(layered)), ..Default::default() }).into(),
        stdio: Some(stdio).into(),
        ..Default::default()
    };
    eprintln!("owner: {:?}", agent.create_container(timeout(), &create).await?);
    let output = [(streams.remove(1), false), (streams.remove(1), true)];
    let mut input = streams.remove(0);
    tokio::spawn(async move {
        tokio::io::copy(&mut stdin()?, &mut input).await?;
        AsyncWriteExt::shutdown(&mut input).await
    });
    let copies = output.map(|(mut stream, error)| {
        tokio::spawn(async move {
            if error {
                tokio::io::copy(&mut stream, &mut stdout("/dev/stderr")?).await
            } else {
                tokio::io::copy(&mut stream, &mut stdout("/dev/stdout")?).await
            }
        })
    });
    let init = ProcessRequest { container_id: "c1".to_owned(), ..Default::default() };
    eprintln!("owner: {:?}", agent.start(timeout(), &init).await?);
    let ended = agent.wait(Timeout::default(), &init).await?;
    for copy in copies {
        copy.await??;
    }
    eprintln!("owner: {ended:?}");
    agent.delete(timeout(), &init).await?;
    Ok(ended.exit_status)
}

fn timeout() -> Timeout {
    with_duration(std::time::Duration::from_secs(60))
}

fn parse_layer(text: &str) -> Result<Layer> {
    let (offset, length) = text.split_once(':').context("a layer is OFFSET:LENGTH")?;
    Ok(Layer { offset_bytes: offset.parse()?, length_bytes: length.parse()?, ..Default::default() })
}

fn stdin() -> io::Result<tokio::fs::File> {
    Ok(tokio::fs::File::from_std(std::fs::File::open("/dev/stdin")?))
}

fn stdout(path: &str) -> io::Result<tokio::fs::File> {
    Ok(tokio::fs::File::from_std(std::fs::OpenOptions::new().append(true).open(path)?))
}
