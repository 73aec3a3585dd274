//! Large files, by the interface of git-lfs
//! (<https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md>) with the hub's transfer in parts:
//! the hub names addresses of a storage, and the bytes go there.

use std::sync::Arc;

use serde_json::{Value, json};
use tunebook_progress::ProgressBar;

use super::api::{Answer, Api, Payload, TRIES, again, pause};
use super::content::UploadContent;
use super::fault::{Fault, Refusal};

const JSON: &str = "application/vnd.git-lfs+json";

/// A large file.
pub(crate) struct Object<'a> {
    pub(crate) name: &'a str,
    pub(crate) content: &'a UploadContent,
    pub(crate) size: u64,
    pub(crate) sha256: &'a str,
}

/// Sends a file unless the hub has it. Says whether bytes were sent.
pub(crate) fn send(
    api: &Api,
    repo: &str,
    revision: &str,
    object: &Object<'_>,
) -> Result<bool, Fault> {
    let label = format!("Uploading {}", object.name);
    let bar = Arc::new(ProgressBar::new(label, Some(object.size)).unit("B"));
    let mut tries = 1;
    loop {
        // The addresses hold for a while only, so they are asked for anew each time.
        let Some(actions) = batch(api, repo, revision, object)? else {
            bar.set(object.size);
            bar.finish();
            return Ok(tries > 1);
        };
        match transfer(api, object, &actions, &bar) {
            Ok(()) => {
                bar.finish();
                return Ok(true);
            }
            // A storage refuses an address that has expired.
            Err(fault) if tries < TRIES && (fault.passes() || fault.status() == Some(403)) => {
                pause(tries, &fault)?;
                tries += 1;
            }
            Err(fault) => return Err(fault),
        }
    }
}

/// How the hub wants the file; nothing if it has it.
fn batch(
    api: &Api,
    repo: &str,
    revision: &str,
    object: &Object<'_>,
) -> Result<Option<Value>, Fault> {
    let url = api.endpoint.at(&format!("/{repo}.git/info/lfs/objects/batch"));
    let asked = json!({
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": [{ "oid": object.sha256, "size": object.size }],
        "hash_algo": "sha256",
        "ref": { "name": revision },
    });
    let accept = [("accept".to_owned(), JSON.to_owned())];
    let answer = again(|| api.once("POST", &url, &accept, &Payload::json(&asked, JSON)))?.json()?;
    let found = &answer["objects"][0];
    if let Some(error) = found.get("error").filter(|error| error.is_object()) {
        return Err(Fault::Refused(Refusal {
            status: error["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(422),
            code: None,
            message: api.said(error["message"].as_str().unwrap_or_default()),
            pause: None,
        }));
    }
    if found["oid"].as_str() != Some(object.sha256) {
        return Err(Fault::Other("the hub answers for another file than it was asked for".into()));
    }
    Ok(found.get("actions").filter(|actions| actions["upload"].is_object()).cloned())
}

fn transfer(
    api: &Api,
    object: &Object<'_>,
    actions: &Value,
    bar: &Arc<ProgressBar>,
) -> Result<(), Fault> {
    if object.content.size()? != object.size {
        return Err(Fault::Other("it changes while it is uploaded: push again".to_owned()));
    }
    let upload = &actions["upload"];
    match &upload["header"]["chunk_size"] {
        Value::Null => {
            let part = part(object, 0, object.size, bar);
            api.storage("PUT", address(upload)?, &headers(upload), &part)?;
        }
        size => parts(api, object, upload, size, bar)?,
    }
    let verify = &actions["verify"];
    if verify.is_object() {
        let url = address(verify)?;
        let value = json!({ "oid": object.sha256, "size": object.size });
        let payload = Payload::json(&value, JSON);
        // On the endpoint itself, as a rule.
        again(|| match api.endpoint.owns(url) {
            true => api.once("POST", url, &headers(verify), &payload),
            false => api.storage("POST", url, &headers(verify), &payload),
        })?;
    }
    Ok(())
}

/// The transfer in parts, each with an address of its own. A part that breaks is sent again alone.
fn parts(
    api: &Api,
    object: &Object<'_>,
    upload: &Value,
    size: &Value,
    bar: &Arc<ProgressBar>,
) -> Result<(), Fault> {
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    let size = number(size).filter(|size| *size > 0).ok_or_else(no_parts)?;
    let header = upload["header"].as_object().ok_or_else(no_parts)?;
    let mut addresses: Vec<(u64, &str)> =
        header.iter().filter_map(|(name, url)| Some((name.parse().ok()?, url.as_str()?))).collect();
    addresses.sort_unstable();
    if addresses.len() as u64 != object.size.div_ceil(size) {
        return Err(no_parts());
    }
    let mut sent = Vec::new();
    for (at, (_, url)) in addresses.into_iter().enumerate() {
        let start = at as u64 * size;
        let part = part(object, start, size.min(object.size - start), bar);
        let answer: Answer = again(|| api.storage("PUT", url, &[], &part))?;
        let etag = answer.etag().ok_or_else(|| {
            Fault::Other(format!("the storage does not say what it has of part {}", at + 1))
        })?;
        sent.push(json!({ "partNumber": at + 1, "etag": etag }));
    }
    let done = json!({ "oid": object.sha256, "parts": sent });
    let accept = [("accept".to_owned(), JSON.to_owned())];
    let url = address(upload)?;
    again(|| api.storage("POST", url, &accept, &Payload::json(&done, JSON))).map(drop)
}

fn no_parts() -> Fault {
    Fault::Other(
        "the hub wants the file in parts, and the parts do not make up the file".to_owned(),
    )
}

fn part(object: &Object<'_>, start: u64, length: u64, bar: &Arc<ProgressBar>) -> Payload {
    Payload::Part { content: object.content.clone(), start, length, bar: Arc::clone(bar) }
}

fn address(action: &Value) -> Result<&str, Fault> {
    let none = || Fault::Other("the hub names no address for the file".to_owned());
    action["href"].as_str().ok_or_else(none)
}

/// The headers that the hub has named for this address.
fn headers(action: &Value) -> Vec<(String, String)> {
    const OURS: [&str; 3] = ["content-length", "host", "transfer-encoding"];
    let named = action["header"].as_object().into_iter().flatten();
    named
        .filter(|(name, _)| !OURS.contains(&name.to_ascii_lowercase().as_str()))
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}
