//! What a client asks for, from the JSON of its body.

use serde_json::Value;

/// A completion that is asked for.
pub struct Request {
    pub prompt: String,
    pub max_tokens: usize,
    pub temperature: f32,
    pub seed: u64,
    pub stream: bool,
}

impl Request {
    /// The request, and the model that it names. A field that is null counts as absent.
    ///
    /// Errors: what was found, and what was expected, in the words of JSON.
    pub fn read(body: &[u8]) -> Result<(Request, Option<String>), String> {
        let body: Value = serde_json::from_slice(body).map_err(|error| format!("the body: {error}"))?;
        let Value::Object(fields) = body else {
            return Err(format!("the body is {}: expected an object", kind(&body)));
        };
        let (mut prompt, mut model) = (None, None);
        let mut request =
            Request { prompt: String::new(), max_tokens: 16, temperature: 0.0, seed: 0, stream: false };
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            let wrong = |expected: &str| format!("{name} is {}: expected {expected}", kind(value));
            let text = || value.as_str().map(str::to_owned).ok_or_else(|| wrong("a string"));
            let count = || value.as_u64().ok_or_else(|| wrong("a whole number from 0 to 2^64 - 1"));
            match name.as_str() {
                "prompt" => prompt = Some(text()?),
                "model" => model = Some(text()?),
                "max_tokens" => request.max_tokens = usize::try_from(count()?).unwrap_or(usize::MAX),
                "temperature" => {
                    let given = value.as_f64().filter(|number| (0.0..=2.0).contains(number));
                    request.temperature = given.ok_or_else(|| wrong("a number from 0 to 2"))? as f32;
                }
                "seed" => request.seed = count()?,
                "stream" => request.stream = value.as_bool().ok_or_else(|| wrong("true or false"))?,
                // Clients send it. It has no use here.
                "user" => drop(text()?),
                _ => {
                    let name: String = name.chars().take(64).collect();
                    return Err(format!(
                        "`{name}` is not known: expected prompt, model, max_tokens, temperature, seed, stream or user"
                    ));
                }
            }
        }
        request.prompt = prompt.ok_or("prompt is missing: expected a string")?;
        Ok((request, model))
    }
}

/// A value as a message shows it.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
