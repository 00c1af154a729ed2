//! The console: one page that shows what happens, live. Embedded, so that it is there offline.
//!
//! It uses the public API and nothing else, and needs no rights of its own. What devices and
//! people wrote reaches the page as text only; the content security policy allows no script but
//! ours, so that a payload stays a payload.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

/// Scripts, styles and requests from here only; nobody may frame the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = include_str!("index.html");
const CSS: &str = include_str!("console.css");
const SCRIPT: &str = include_str!("console.js");
const ICON: &str = include_str!("icon.svg");

/// The console's paths. All of them may be read by everyone: they hold no data.
pub fn router() -> Router {
    Router::new()
        .route("/", get(|| page("text/html; charset=utf-8", HTML)))
        .route("/console.css", get(|| page("text/css; charset=utf-8", CSS)))
        .route("/console.js", get(|| page("text/javascript; charset=utf-8", SCRIPT)))
        .route("/icon.svg", get(|| page("image/svg+xml", ICON)))
}

async fn page(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        // The next version of the program has another page.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inline code would not run under the policy, and markup made of text is how payloads become
    /// scripts.
    #[test]
    fn the_page_keeps_to_its_policy() {
        for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
        {
            assert!(!SCRIPT.contains(forbidden), "console.js uses {forbidden}");
        }
        for forbidden in ["<style", " style=", " onclick=", "javascript:", "http://", "https://"] {
            assert!(!HTML.contains(forbidden), "index.html has {forbidden}");
        }
        assert_eq!(HTML.matches("<script").count(), 1);
        assert!(HTML.contains("<script src=\"/console.js\" defer></script>"));
    }
}
