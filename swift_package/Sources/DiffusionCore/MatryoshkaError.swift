import Foundation

/// The errors of this package, each with the values that caused it.
///
/// `errorDescription` is one sentence for a person, `recoverySuggestion` says what may help, and `code`
/// names the case for an app that words its own texts.
public enum MatryoshkaError: Error, Sendable, Equatable {
  /// The text is not strict JSON. `offset`: the byte where parsing failed.
  case invalidJSON(offset: Int, reason: String)
  /// The manifest breaks a rule of its schema. `field`: the place, such as `levels.0.side`.
  case invalidManifest(field: String, reason: String)
  /// The bundle uses something that this version cannot run. `field`: the place in the manifest.
  case newerBundle(field: String, reason: String)
  /// A file of the bundle differs from the manifest's description of it.
  case damagedBundle(file: String, reason: String)
  /// A safetensors file cannot be read.
  case invalidTensorFile(reason: String)
  /// A SentencePiece model cannot be used.
  case invalidTokenizer(reason: String)
  /// A picture file cannot be read or written.
  case invalidPicture(reason: String)
  /// A request cannot be fulfilled. `name`: the argument at fault.
  case invalidArgument(name: String, reason: String)
  /// The bundle makes clips where a picture was asked for, or pictures where a clip was.
  case wrongKind(reason: String)
  /// The cache has no text features for this caption.
  case missingFeatures(caption: String)
  /// A file operation failed.
  case fileSystem(path: String, reason: String)
  /// The model does not fit into memory. Both values are in bytes.
  case notEnoughMemory(needed: Int, available: Int)
  /// A package could not be loaded or run.
  case packageFailed(package: String, reason: String)
  /// No compute unit of this device reaches the golden record of the bundle.
  case selfTestFailed(reason: String)
  /// The bundle server broke the protocol or ended.
  case serverFailed(reason: String)
  /// The pipeline is already making a picture; it makes one at a time.
  case busy
  /// The app's own filter refused the prompt.
  case promptRefused(reason: String)
  /// The app's own filter refused the picture.
  case pictureRefused(reason: String)
  /// The run stopped after some steps. `resume` continues from the snapshot to the same picture.
  case interrupted(Snapshot, reason: String)
}

extension MatryoshkaError: LocalizedError {
  /// One sentence for a person.
  public var errorDescription: String? {
    switch self {
    case .invalidJSON(let offset, let reason): "not valid JSON at byte \(offset): \(reason)."
    case .invalidManifest(let field, let reason): "manifest.json: \(field) \(reason)."
    case .newerBundle(let field, let reason): "manifest.json: \(field) \(reason); update the package."
    case .damagedBundle(let file, let reason):
      "\(file): \(reason); copy the whole bundle again."
    case .invalidTensorFile(let reason): "tensor file: \(reason)."
    case .invalidTokenizer(let reason): "tokenizer: \(reason)."
    case .invalidPicture(let reason): "picture: \(reason)."
    case .invalidArgument(let name, let reason): "\(name): \(reason)."
    case .wrongKind(let reason): "\(reason)."
    case .missingFeatures(let caption):
      "no text features for the caption \"\(caption.prefix(60))\"; add them with mdm embed."
    case .fileSystem(let path, let reason): "\(path): \(reason)."
    case .notEnoughMemory(let needed, let available):
      "the model needs \(needed >> 20) MB of memory, but only \(available >> 20) MB are available; "
        + "choose a smaller variant of the bundle."
    case .packageFailed(let package, let reason): "package \(package): \(reason)."
    case .selfTestFailed(let reason): "self-test: \(reason)."
    case .serverFailed(let reason): "bundle server: \(reason)."
    case .busy: "another picture is being made; wait for it or end its stream."
    case .promptRefused(let reason): "the prompt was refused: \(reason)."
    case .pictureRefused(let reason): "the picture was refused: \(reason)."
    case .interrupted(let snapshot, let reason):
      "interrupted after \(snapshot.stepsDone) steps (\(reason)); resume from the snapshot."
    }
  }
  /// What may help, as one sentence for a person.
  public var recoverySuggestion: String? {
    switch self {
    case .invalidJSON, .invalidManifest, .damagedBundle, .invalidTokenizer:
      "Copy the whole bundle again, or convert it again with mdm convert."
    case .newerBundle: "Update the Swift package to the version of the mdm-apple that made the bundle."
    case .invalidTensorFile: "Make the file again: the bundle with mdm convert, features with mdm embed."
    case .invalidPicture: "Use an 8-bit RGB picture."
    case .invalidArgument: "Change the argument that the sentence names."
    case .wrongKind: "Ask for what the bundle makes, or use another bundle."
    case .missingFeatures: "Add the caption to the features with mdm embed."
    case .fileSystem: "Check that the path exists, that it may be used, and that the disk has room."
    case .notEnoughMemory: "Close other apps, or use a smaller variant of the bundle."
    case .packageFailed: "Try again; if that fails as well, try other compute units, or the bundle anew."
    case .selfTestFailed: "Copy the whole bundle again, or use the model's Core ML bundle on this device."
    case .serverFailed: "Read the server's own message, and try mdm serve-bundle by itself."
    case .busy: "Wait for the picture that is being made, or end it."
    case .promptRefused: "Change the prompt."
    case .pictureRefused: "Change the prompt or the seed."
    case .interrupted: "Resume from the snapshot."
    }
  }
}

extension MatryoshkaError: CustomNSError {
  /// The domain of these errors as `NSError`.
  public static let errorDomain = "MatryoshkaError"

  /// A name for the case that never changes, as a key for an app's own texts.
  public var code: String { identity.code }

  /// A number for the case that never changes.
  public var errorCode: Int { identity.number }

  /// Both sentences, which some systems take from here alone.
  public var errorUserInfo: [String: Any] {
    var texts: [String: Any] = [:]
    texts[NSLocalizedDescriptionKey] = errorDescription
    texts[NSLocalizedRecoverySuggestionErrorKey] = recoverySuggestion
    return texts
  }

  private var identity: (code: String, number: Int) {
    switch self {
    case .invalidJSON: ("invalid_json", 1)
    case .invalidManifest: ("invalid_manifest", 2)
    case .damagedBundle: ("damaged_bundle", 3)
    case .invalidTensorFile: ("invalid_tensor_file", 4)
    case .invalidTokenizer: ("invalid_tokenizer", 5)
    case .invalidPicture: ("invalid_picture", 6)
    case .invalidArgument: ("invalid_argument", 7)
    case .missingFeatures: ("missing_features", 8)
    case .fileSystem: ("file_system", 9)
    case .notEnoughMemory: ("not_enough_memory", 10)
    case .packageFailed: ("package_failed", 11)
    case .serverFailed: ("server_failed", 12)
    case .busy: ("busy", 13)
    case .promptRefused: ("prompt_refused", 14)
    case .pictureRefused: ("picture_refused", 15)
    case .interrupted: ("interrupted", 16)
    case .newerBundle: ("newer_bundle", 17)
    case .selfTestFailed: ("self_test_failed", 18)
    case .wrongKind: ("wrong_kind", 19)
    }
  }
}

extension Error {
  /// What an error says, to be quoted in a reason: its own text and those of the errors below it.
  package var cause: String {
    if let own = self as? MatryoshkaError { return trimmed(own.errorDescription ?? own.code) }
    let error = self as NSError
    let said = error.localizedDescription
    // The system's sentence for an error without words holds no more than its type and number.
    let isGeneric = said.contains("\(error.domain) error \(error.code)")
    let text = isGeneric ? "\(self)" : trimmed(said)
    guard let below = error.userInfo[NSUnderlyingErrorKey] as? any Error else { return text }
    return "\(text): \(below.cause)"
  }
}

private func trimmed(_ sentence: String) -> String {
  sentence.hasSuffix(".") ? String(sentence.dropLast()) : sentence
}
