//! The way to the servers: their addresses, the trust in them, and the caller's identity.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use crate::command_service_client::CommandServiceClient;
use crate::query_service_client::QueryServiceClient;

/// A channel that connects at its first call, and again after a cut. Its calls carry the caller's token.
pub type Connection = InterceptedService<Channel, Bearer>;
/// The client of the command server. A clone shares the connection.
pub type Commands = CommandServiceClient<Connection>;
/// The client of the query server. A clone shares the connection.
pub type Queries = QueryServiceClient<Connection>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
// A peer that vanished without a word is noticed in 15 s, so that the next call takes another connection. The servers take a
// ping every 5 s at most.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the servers are, and who calls.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The command server, as host:port.
    pub command: String,
    /// The query server, as host:port.
    pub query: String,
    /// A folder with `ca.crt`, the authorities to trust, and perhaps the client's `tls.crt` and `tls.key`. None: plaintext.
    pub tls: Option<PathBuf>,
    /// A file with the caller's token, for TLS only. It is read for each call, so that the token may be replaced.
    pub token_file: Option<PathBuf>,
}

impl Default for Settings {
    /// The servers of this machine, in plaintext.
    fn default() -> Self {
        Self { command: "127.0.0.1:50051".into(), query: "127.0.0.1:50052".into(), tls: None, token_file: None }
    }
}

impl Settings {
    /// Reads `CHARGEONCE_COMMAND`, `CHARGEONCE_QUERY`, `CHARGEONCE_TLS` and `CHARGEONCE_TOKEN_FILE`; what is empty or not set
    /// has its default.
    pub fn from_env() -> Self {
        let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let default = Self::default();
        Self {
            command: set("CHARGEONCE_COMMAND").unwrap_or(default.command),
            query: set("CHARGEONCE_QUERY").unwrap_or(default.query),
            tls: set("CHARGEONCE_TLS").map(PathBuf::from),
            token_file: set("CHARGEONCE_TOKEN_FILE").map(PathBuf::from),
        }
    }

    /// The client of the command server. It needs a Tokio runtime, and does not connect yet.
    ///
    /// # Errors
    /// An address that is none; a file of [`Settings::tls`] that is missing or holds something else; a token without TLS.
    pub fn commands(&self) -> Result<Commands, Box<dyn Error + Send + Sync>> {
        Ok(CommandServiceClient::new(self.connection(&self.command)?))
    }

    /// The client of the query server, as [`Settings::commands`].
    ///
    /// # Errors
    /// As [`Settings::commands`].
    pub fn queries(&self) -> Result<Queries, Box<dyn Error + Send + Sync>> {
        Ok(QueryServiceClient::new(self.connection(&self.query)?))
    }

    fn connection(&self, address: &str) -> Result<Connection, Box<dyn Error + Send + Sync>> {
        let endpoint = match &self.tls {
            None if self.token_file.is_some() => return Err("a token is never sent without TLS".into()),
            None => Endpoint::from_shared(format!("http://{address}"))?,
            Some(folder) => Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls(folder)?)?,
        };
        // With a connector of ours the timeout holds for the TLS handshake too. tonic's own has it for TCP alone: a peer that
        // accepts and says nothing would hold the channel for ever.
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .connect_with_connector_lazy(tcp);
        Ok(InterceptedService::new(channel, Bearer(self.token_file.clone())))
    }
}

fn tls(folder: &Path) -> Result<ClientTlsConfig, String> {
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&folder.join("ca.crt"))?));
    let certificate = folder.join("tls.crt");
    if !certificate.exists() {
        return Ok(config);
    }
    Ok(config.identity(Identity::from_pem(read(&certificate)?, read(&folder.join("tls.key"))?)))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Sends the token that a file holds now, if there is one, as `authorization: Bearer TOKEN`.
#[derive(Clone, Debug)]
pub struct Bearer(Option<PathBuf>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(file) = &self.0 {
            let token = read(file).map_err(Status::unauthenticated)?;
            let mut header: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
                .parse()
                .map_err(|_| Status::unauthenticated(format!("{}: no token", file.display())))?;
            header.set_sensitive(true); // in no log, and in no table of compressed headers
            request.metadata_mut().insert("authorization", header);
        }
        Ok(request)
    }
}
