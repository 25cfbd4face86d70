use super::*;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;

const SECRET: &[u8] = b"a shared secret of forty bytes or so....";

fn open(keys: &Value) -> Result<Tokens, KeysError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), keys.to_string()).unwrap();
    Tokens::open(&settings(file.path()))
}

fn settings(keys: &Path) -> Settings {
    Settings {
        keys: keys.into(),
        issuer: "https://issuer.test".into(),
        audience: "api".into(),
        location: TokenLocation::Header(http::header::AUTHORIZATION),
        leeway: Duration::from_secs(60),
        others: Others::Refuse,
    }
}

fn oct(id: &str) -> Value {
    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
    json!({ "kty": "oct", "kid": id, "k": BASE64_URL_SAFE_NO_PAD.encode(SECRET) })
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn sound() -> Value {
    json!({ "iss": "https://issuer.test", "aud": ["other", "api"], "exp": now() + 300, "sub": "alice", "n": 7, "list": [] })
}

fn token(algorithm: Algorithm, claims: &Value) -> String {
    encode(&Header { kid: Some("a".into()), ..Header::new(algorithm) }, claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

#[test]
fn a_sound_token_is_believed_and_nothing_else() {
    let tokens = open(&json!({ "keys": [oct("a")] })).unwrap();
    let verified = tokens.verify(&token(Algorithm::HS256, &sound())).unwrap();
    assert_eq!(verified.claim("sub").as_deref(), Some("alice"));
    assert_eq!((verified.claim("n").as_deref(), verified.claim("list"), verified.claim("none")), (Some("7"), None, None));
    let with = |key: &str, value: Value| {
        let mut claims = sound();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(key).map(drop)
        } else {
            claims.as_object_mut().unwrap().insert(key.into(), value).map(drop)
        };
        tokens.verify(&token(Algorithm::HS256, &claims)).map(drop)
    };
    assert_eq!(with("exp", json!(now() - 61)), Err(Fault::Expired));
    assert_eq!(with("exp", json!(now() - 30)), Ok(()), "within the leeway");
    assert_eq!(with("exp", Value::Null), Err(Fault::NotForUs));
    assert_eq!(with("nbf", json!(now() + 120)), Err(Fault::NotForUs));
    assert_eq!(with("iss", json!("https://other.test")), Err(Fault::NotForUs));
    assert_eq!(with("iss", Value::Null), Err(Fault::NotForUs));
    assert_eq!(with("aud", json!("another")), Err(Fault::NotForUs));
    assert_eq!(with("aud", Value::Null), Err(Fault::NotForUs));
    for bad in ["", "a.b.c", "....", &"x".repeat(9000)] {
        assert_eq!(tokens.verify(bad).map(drop), Err(Fault::Malformed), "{bad}");
    }
}

#[test]
fn the_token_does_not_choose_the_algorithm() {
    let tokens = open(&json!({ "keys": [oct("a")] })).unwrap();
    // Signed correctly, but with another algorithm than the key's.
    assert_eq!(tokens.verify(&token(Algorithm::HS512, &sound())).map(drop), Err(Fault::UnknownKey));
    let good = token(Algorithm::HS256, &sound());
    let parts: Vec<_> = good.split('.').collect();
    let header = |text: &str| {
        use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
        BASE64_URL_SAFE_NO_PAD.encode(text)
    };
    for (head, signature) in [
        (header(r#"{"alg":"none"}"#), ""),
        (header(r#"{"alg":"None"}"#), parts[2]),
        (header(r#"{"alg":"HS256","kid":"b"}"#), parts[2]),
        (header(r#"{"alg":"HS256","crit":["exp"]}"#), parts[2]),
    ] {
        assert!(tokens.verify(&format!("{head}.{}.{signature}", parts[1])).is_err(), "{head}");
    }
    let forged = header(&sound().to_string().replace("alice", "mallory"));
    assert_eq!(tokens.verify(&format!("{}.{forged}.{}", parts[0], parts[2])).map(drop), Err(Fault::BadSignature));
    // An RSA public key must not serve as an HMAC secret.
    let rsa = json!({ "keys": [{ "kty": "RSA", "n": "AQAB", "e": "AQAB" }] });
    assert_eq!(open(&rsa).unwrap().verify(&good).map(drop), Err(Fault::UnknownKey));
}

#[test]
fn every_kind_of_key_verifies_its_own_tokens_and_no_others() {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
    let (text, random) = (|bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes), SystemRandom::new());
    let es = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let rs = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let point = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, es.as_ref()).unwrap().public_key().as_ref().to_vec();
    let public = Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap().public_key().as_ref().to_vec();
    let spki: PublicKeyX509Der<'_> = rs.public_key().as_der().unwrap();
    // The encoding ends with the modulus and five bytes for the exponent 65,537.
    let modulus = &spki.as_ref()[spki.as_ref().len() - 261..spki.as_ref().len() - 5];
    // The PKCS #8 encoding is a header of 26 bytes, followed by the PKCS #1 encoding.
    let private: Pkcs8V1Der<'_> = rs.as_der().unwrap();
    let kinds = [
        (Algorithm::HS256, EncodingKey::from_secret(SECRET), oct("a")),
        (
            Algorithm::ES256,
            EncodingKey::from_ec_der(es.as_ref()),
            json!({ "kty": "EC", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..]) }),
        ),
        (Algorithm::EdDSA, EncodingKey::from_ed_der(ed.as_ref()), json!({ "kty": "OKP", "crv": "Ed25519", "x": text(&public) })),
        (
            Algorithm::RS256,
            EncodingKey::from_rsa_der(&private.as_ref()[26..]),
            json!({ "kty": "RSA", "alg": "RS256", "n": text(modulus), "e": "AQAB" }),
        ),
    ];
    for (own, (_, _, jwk)) in kinds.iter().enumerate() {
        let tokens = open(&json!({ "keys": [jwk] })).unwrap();
        for (other, (algorithm, key, _)) in kinds.iter().enumerate() {
            let token = encode(&Header::new(*algorithm), &sound(), key).unwrap();
            let verified = tokens.verify(&token);
            assert_eq!(verified.is_ok(), own == other, "{algorithm:?}: {verified:?}");
            let (body, signature) = token.rsplit_once('.').unwrap();
            let forged = format!("{body}.{}", text(&vec![1; BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap().len()]));
            assert!(tokens.verify(&forged).is_err());
        }
    }
}

#[test]
fn a_set_of_keys_is_sound_or_refused() {
    for (bad, reason) in [
        (json!({}), "`keys` is missing"),
        (json!({ "keys": [] }), "contains no key"),
        (json!({ "keys": [{ "kty": "oct", "k": "c2hvcnQ" }] }), "can be guessed"),
        (json!({ "keys": [{ "kty": "oct", "k": "%" }] }), "key 0"),
        (json!({ "keys": [{ "kty": "EC", "crv": "P-521", "x": "AA", "y": "AA" }] }), "contains no key"),
    ] {
        let error = open(&bad).err().expect("the key set is refused").to_string();
        assert!(error.contains(reason), "{bad}: {error}");
    }
    let mixed = json!({ "keys": [{ "kty": "new", "x": 1 }, { "kty": "oct", "use": "enc", "k": "AA" }, oct("a")] });
    assert_eq!(open(&mixed).unwrap().keys.len(), 1);
}

/// The signatures of the IETF's cookbook (RFC 7520, RFC 8037): those of every supported algorithm verify, and fail after one
/// flipped bit.
#[test]
fn the_cookbooks_signatures_verify() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/jose-cookbook");
    let files = std::fs::read_dir(&folder).unwrap();
    let (mut verified, mut refused) = (Vec::new(), 0);
    for file in files.map(|file| file.unwrap().path()) {
        let vector: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let (Some(compact), Some(input)) = (vector["output"]["compact"].as_str(), vector.get("input")) else { continue };
        let (message, signature) = compact.rsplit_once('.').unwrap();
        let mut entry = input["key"].clone();
        entry.as_object_mut().unwrap().insert("alg".into(), input["alg"].clone());
        if vector["signing"]["protected"].get("crit").is_some() {
            // The critical extension `b64` (RFC 7797) is not supported.
            let tokens = open(&json!({ "keys": [entry] })).unwrap();
            assert_eq!(tokens.verify(compact).map(drop), Err(Fault::Malformed));
            refused += 1;
            continue;
        }
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let Ok(Some(key)) = read_key(&entry) else { continue };
        let signed = vector["signing"]["sig-input"].as_str().unwrap_or(message);
        let verify = |signed: &[u8]| jsonwebtoken::crypto::verify(signature, signed, &key.key, key.algorithm).unwrap_or(false);
        assert!(verify(signed.as_bytes()), "{name}");
        let mut flipped = signed.as_bytes().to_vec();
        flipped[10] ^= 1;
        assert!(!verify(&flipped), "{name}");
        verified.push(input["alg"].as_str().unwrap().to_owned());
    }
    verified.sort();
    assert_eq!((verified.join(" "), refused), ("EdDSA HS256 HS256 PS384 RS256".to_owned(), 1));
}

#[test]
fn a_verified_token_is_remembered_until_it_expires_or_the_keys_change() {
    let tokens = Arc::new(open(&json!({ "keys": [oct("a")] })).unwrap());
    let (token, mut cache) = (token(Algorithm::HS256, &sound()), Cache::default());
    let time = SystemTime::now();
    let how = |cache: &mut Cache, tokens: &Arc<Tokens>, time| cache.verify(tokens, &token, time).map(|(_, how)| how);
    assert_eq!(how(&mut cache, &tokens, time), Ok(How::Verified));
    assert_eq!(how(&mut cache, &tokens, time), Ok(How::Remembered));
    assert_eq!(how(&mut cache, &tokens, time + Duration::from_secs(400)), Err(Fault::Expired));
    let other = Arc::new(open(&json!({ "keys": [oct("b")] })).unwrap());
    assert_eq!(how(&mut cache, &other, time), Err(Fault::UnknownKey));
}
