//! Tokens of the daemon, for its administrators.

use crate::client::{READ_LIMIT, bounded, read_json};
use crate::connection::{self, Ask};
use crate::{Client, Error};
use enisle_api::{CreateToken, CreatedToken, Token, routes};
use http::Method;

impl Client {
    /// The tokens there are, without their secrets. At most 30 s.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tokens(&self) -> Result<Vec<Token>, Error> {
        self.get(routes::TOKENS).await
    }

    /// Makes a token; the answer is the only place where it is told. At most 30 s.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_token(&self, create: &CreateToken) -> Result<CreatedToken, Error> {
        let ask = Ask { method: &Method::POST, path: routes::TOKENS };
        let json = serde_json::to_vec(create).map_err(|e| ask.protocol(e.to_string()))?;
        bounded(ask, READ_LIMIT, async {
            read_json(ask, connection::request(&self.endpoint, ask, Some(json)).await?).await
        })
        .await
    }

    /// Ends a token now, with the streams that were opened with it. At most 30 s.
    ///
    /// # Errors
    /// `not_found` when there is none of this id; else see [`Error`].
    pub async fn revoke_token(&self, id: &str) -> Result<(), Error> {
        let path = routes::token(id);
        let ask = Ask { method: &Method::DELETE, path: &path };
        bounded(ask, READ_LIMIT, connection::request(&self.endpoint, ask, None)).await.map(drop)
    }
}
