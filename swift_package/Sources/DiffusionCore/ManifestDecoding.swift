extension Manifest {
  /// The largest manifest that is read, in bytes.
  public static let maximumBytes = 16 << 20
  /// The schema versions that this package reads. A bundle has version 2 only if it uses what readers
  /// of version 1 do not know.
  public static let schemaVersions = 1...2

  /// Reads `manifest.json` and checks strict JSON, the rules of the schema, and the digest.
  ///
  /// Throws a ``MatryoshkaError`` for the first violation. A manifest can be read of a bundle that this
  /// version cannot run; ``BundleFolder`` refuses to open one.
  public init(parsing bytes: [UInt8]) throws {
    guard bytes.count <= Manifest.maximumBytes else {
      throw MatryoshkaError.invalidManifest(
        field: "the whole", reason: "has \(bytes.count) bytes, expected at most 16 MiB")
    }
    let document = try JSON(parsing: bytes)
    try self.init(document)
    guard digest == Manifest.digest(of: document) else {
      throw MatryoshkaError.invalidManifest(
        field: "digest", reason: "does not match; the manifest was altered after it was made")
    }
  }

  /// SHA-256 of the canonical JSON without the digest, in hexadecimal.
  package static func digest(of document: JSON) -> String {
    guard case .object(let members) = document else { return "" }
    let rest = JSON.object(members.filter { $0.key != "digest" })
    return SHA256.hex(of: Array(rest.canonical.utf8))
  }

  private init(_ document: JSON) throws {
    var fields = try JSONFields(document, "")
    let schema = try fields.integer("schema", 0...Int.max)
    guard Manifest.schemaVersions.contains(schema) else {
      let known = Manifest.schemaVersions.map(String.init).joined(separator: " and ")
      throw MatryoshkaError.newerBundle(
        field: "schema", reason: "is \(schema), but this version reads \(known)")
    }
    let isYounger = schema >= 2
    digest = try fields.sha256("digest")
    layout = try fields.choice("layout")
    variant = try fields.string("variant", 1...64)
    target = try fields.choice("target", of: Target.self).rawValue
    levels = try fields.list("levels", 1...5, Level.init)
    numSteps = try fields.integer("num_steps", 2...100_000)
    alphaBar = try fields.name("alpha_bar")
    tables = try fields.path("tables", 1...512)
    config = try fields.path("config", 1...512)
    prediction = try fields.choice("prediction")
    threshold = try fields.choice("threshold")
    guidance = try fields.choice("guidance")
    sampler = try Sampler(&fields)
    student = try fields.optional("student", Student.init)
    text = try fields.optional("text") { try Text(&$0, isYounger) }
    packages = try fields.list("packages", 1...10_000, Package.init)
    peakMemory = try fields.object("peak_memory", PeakMemory.init)
    golden = try fields.object("golden", Golden.init)
    provenance = try fields.object("provenance", Provenance.init)
    versions = try fields.versions()
    created = try fields.optionalString("created", 0...64)
    files = try fields.list("files", 1...10_000, File.init)
    // What is absent has its default. A manifest of version 1 with one of these is refused as unknown.
    let adds = { isYounger && fields.has($0) }
    format = adds("format") ? try fields.choice("format") : .coreml
    video = adds("video") ? try fields.object("video", Video.init) : nil
    sizes = adds("sizes") ? try fields.list("sizes", 1...10_000, Size.init) : []
    adapters = adds("adapters") ? try fields.list("adapters", 1...10_000, Adapter.init) : []
    try fields.finish()
    guard created.map(isDateTime) ?? true else {
      throw fields.refusal("created", "is not a date and time")
    }
  }
}

private enum Target: String, CaseIterable {
  case iOS17, iOS18, iOS26, iOS27
}

extension Manifest.Feature {
  fileprivate init(_ fields: inout JSONFields) throws {
    name = try fields.name("name")
    dtype = try fields.choice("dtype")
    shape = try fields.integers("shape", 1...5, 1...(1 << 31))
  }
}

extension Manifest.Package {
  fileprivate init(_ fields: inout JSONFields) throws {
    name = try fields.name("name")
    path = try fields.string("path", 1...512)
    let suffix = Manifest.Format.allCases.map(\.suffix).first(where: path.hasSuffix)
    guard let suffix, isName(String(path.dropLast(suffix.count))) else {
      throw fields.refusal("path", "is not the name of an .mlpackage or .aimodel")
    }
    phase = try fields.choice("phase")
    side = try fields.optionalInteger("side", 1...8192)
    _ = try fields.choice("precision", of: Precision.self)
    weightBits = try fields.integer("weight_bits", 2...16)
    guard [2, 3, 4, 6, 8, 16].contains(weightBits) else {
      throw fields.refusal("weight_bits", "is \(weightBits), expected 2, 3, 4, 6, 8 or 16")
    }
    compute = try fields.choice("compute")
    bytes = try fields.integer("bytes", 1...Int.max)
    activationBytes = try fields.integer("activation_bytes", 0...Int.max)
    inputs = try fields.list("inputs", 1...10_000, Manifest.Feature.init)
    outputs = try fields.list("outputs", 1...10_000, Manifest.Feature.init)
  }
}

extension Manifest.Student {
  fileprivate init(_ fields: inout JSONFields) throws {
    starts = try fields.integers("starts", 1...65, 1...Int.max)
    targets = try fields.integers("targets", 1...65, 0...Int.max)
    let place = fields.path("weights")
    weights = try fields.array("weights", 0...64).map {
      try JSONFields.fraction($0, -100...100, place)
    }
  }
}

private enum Precision: String, CaseIterable {
  case fp16
}

extension Manifest.Level {
  fileprivate init(_ fields: inout JSONFields) throws {
    side = try fields.integer("side", 1...8192)
    image = try fields.name("image")
    temb = try fields.name("temb")
    prediction = try fields.name("prediction")
    features = try fields.optionalName("features")
    alphaBar = try fields.name("alpha_bar")
    time = try fields.name("time")
    targetTime = try fields.optionalName("target_time")
    guidance = try fields.optionalName("guidance")
    imageScale = try fields.positiveNumber("image_scale")
  }
}

extension Manifest.Text {
  fileprivate init(_ fields: inout JSONFields, _ isYounger: Bool) throws {
    maxTokens = try fields.integer("max_tokens", 1...4096)
    width = try fields.integer("width", 1...(1 << 31))
    lowercase = try fields.bool("lowercase")
    encoder = try fields.optionalName("encoder")
    tokenizer = try fields.optionalString("tokenizer", 1...512)
    source = try fields.optionalString("source", 0...4096)
    tokenizerSHA256 = try fields.optionalSHA256("tokenizer_sha256")
    padding = try fields.changed("padding", from: .maxTokens, isYounger)
    nullPrompt = try fields.changed("null_prompt", from: .end, isYounger)
  }
}

extension Manifest.Video {
  fileprivate init(_ fields: inout JSONFields) throws {
    frames = try fields.integers("frames", 1...10_000, 1...256)
    fps = try fields.integer("fps", 1...240)
    keyFrame = try fields.integer("key_frame", 0...255)
  }
}

extension Manifest.Size {
  fileprivate init(_ fields: inout JSONFields) throws {
    name = try fields.name("name")
    width = try fields.integer("width", 1...8192)
    height = try fields.integer("height", 1...8192)
  }
}

extension Manifest.Adapter {
  fileprivate init(_ fields: inout JSONFields) throws {
    name = try fields.name("name")
    sha256 = try fields.sha256("sha256")
  }
}

extension Manifest.Sampler {
  fileprivate init(_ fields: inout JSONFields) throws {
    var own = try JSONFields(fields.take("sampler"), fields.path("sampler"))
    kind = try own.choice("kind")
    steps = try own.integer("steps", 1...Int.max)
    let least = try own.integer("minimum_steps", 1...Int.max)
    let most = try own.integer("maximum_steps", 1...Int.max)
    guard least <= most else { throw own.refusal("maximum_steps", "is below minimum_steps") }
    allowedSteps = least...most
    try own.finish()
  }
}

extension Manifest.PeakMemory {
  fileprivate init(_ fields: inout JSONFields) throws {
    resident = try fields.integer("resident", 0...Int.max)
    staged = try fields.integer("staged", 0...Int.max)
    minimal = try fields.integer("minimal", 0...Int.max)
  }
}

extension Manifest.Golden {
  fileprivate init(_ fields: inout JSONFields) throws {
    path = try fields.path("path", 1...512)
    let place = fields.path("prompts")
    prompts = try fields.array("prompts", 1...10_000).map {
      guard case .string(let text) = $0, text.unicodeScalars.count <= 4096 else {
        throw MatryoshkaError.invalidManifest(
          field: place, reason: "has an entry that is not a text of at most 4096 characters")
      }
      return text
    }
    if let source = try fields.optionalString("text", 0...64),
      !["prompts", "random tokens", "random features"].contains(source)
    {
      throw fields.refusal("text", "is \"\(source)\", which is unknown")
    }
    _ = try fields.integer("seed", 0...Int.max)
    guard ["ddim", "student"].contains(try fields.string("sampler", 0...64)) else {
      throw fields.refusal("sampler", "is neither ddim nor student")
    }
    _ = try fields.integer("steps", 1...Int.max)
    times = try fields.integers("times", 1...10_000, 1...Int.max)
  }
}

extension Manifest.Provenance {
  fileprivate init(_ fields: inout JSONFields) throws {
    license = try fields.optionalString("license", 0...4096)
    source = try fields.optionalString("source", 0...4096)
    baseModel = try fields.optionalString("base_model", 0...4096)
    notes = try fields.optionalString("notes", 0...4096)
  }
}

extension Manifest.File {
  fileprivate init(_ fields: inout JSONFields) throws {
    path = try fields.path("path", 1...512)
    size = try fields.integer("size", 0...Int.max)
    sha256 = try fields.sha256("sha256")
  }
}

extension JSONFields {
  fileprivate mutating func name(_ key: String) throws -> String {
    let text = try string(key, 1...64)
    guard isName(text) else { throw refusal(key, "is not made of letters, digits and _") }
    return text
  }

  fileprivate mutating func optionalName(_ key: String) throws -> String? {
    guard let text = try optionalString(key, 1...64) else { return nil }
    guard isName(text) else { throw refusal(key, "is not made of letters, digits and _") }
    return text
  }

  fileprivate mutating func path(_ key: String, _ lengths: ClosedRange<Int>) throws -> String {
    try string(key, lengths)
  }

  fileprivate mutating func sha256(_ key: String) throws -> String {
    try optionalSHA256(key) ?? { throw refusal(key, "is not a SHA-256") }()
  }

  fileprivate mutating func optionalSHA256(_ key: String) throws -> String? {
    guard let text = try optionalString(key, 0...4096) else { return nil }
    let hex = Set("0123456789abcdef".utf8)
    guard text.utf8.count == 64, text.utf8.allSatisfy(hex.contains) else {
      throw refusal(key, "is not a SHA-256")
    }
    return text
  }

  fileprivate mutating func optionalInteger(
    _ key: String, _ range: ClosedRange<Int>
  ) throws -> Int? {
    let value = try take(key)
    return value == .null ? nil : try JSONFields.integer(value, range, path(key))
  }

  /// A choice that is written only where it is not the usual one; never in an older manifest.
  fileprivate mutating func changed<Choice: RawRepresentable & CaseIterable & Equatable>(
    _ key: String, from usual: Choice, _ isYounger: Bool
  ) throws -> Choice where Choice.RawValue == String {
    guard isYounger, has(key) else { return usual }
    let value: Choice = try choice(key)
    guard value != usual else {
      throw refusal(key, "is \"\(usual.rawValue)\", which is never written")
    }
    return value
  }

  fileprivate mutating func object<Part>(
    _ key: String, _ make: (inout JSONFields) throws -> Part
  ) throws -> Part {
    try JSONFields.part(take(key), path(key), make)
  }

  fileprivate mutating func optional<Part>(
    _ key: String, _ make: (inout JSONFields) throws -> Part
  ) throws -> Part? {
    let value = try take(key)
    return value == .null ? nil : try JSONFields.part(value, path(key), make)
  }

  fileprivate mutating func list<Part>(
    _ key: String, _ counts: ClosedRange<Int>, _ make: (inout JSONFields) throws -> Part
  ) throws -> [Part] {
    let place = path(key)
    return try array(key, counts).enumerated().map { index, value in
      try JSONFields.part(value, "\(place).\(index)", make)
    }
  }

  fileprivate mutating func versions() throws -> [String: String] {
    guard case .object(let members) = try take("versions") else {
      throw refusal("versions", "is not an object")
    }
    var out: [String: String] = [:]
    for member in members {
      guard case .string(let text) = member.value, text.unicodeScalars.count <= 4096 else {
        throw refusal("versions.\(member.key.prefix(80))", "is not a text of at most 4096 characters")
      }
      out[member.key] = text
    }
    return out
  }

  private static func part<Part>(
    _ value: JSON, _ place: String, _ make: (inout JSONFields) throws -> Part
  ) throws -> Part {
    var fields = try JSONFields(value, place)
    let part = try make(&fields)
    try fields.finish()
    return part
  }
}

/// `^[A-Za-z0-9_]{1,64}$`
private func isName(_ text: String) -> Bool {
  (1...64).contains(text.utf8.count)
    && text.utf8.allSatisfy {
      (0x30...0x39).contains($0) || (0x41...0x5A).contains($0) || (0x61...0x7A).contains($0)
        || $0 == 0x5F
    }
}

/// `2026-11-24T17:00:00Z`, optionally with a fraction of a second or an offset.
private func isDateTime(_ text: String) -> Bool {
  let pattern = Array("dddd-dd-ddTdd:dd:dd".utf8)
  let bytes = Array(text.utf8)
  guard bytes.count > pattern.count else { return false }
  for (byte, expected) in zip(bytes, pattern) {
    let digit = (0x30...0x39).contains(byte)
    guard expected == UInt8(ascii: "d") ? digit : byte == expected else { return false }
  }
  return bytes[pattern.count...].allSatisfy {
    (0x30...0x39).contains($0) || [UInt8](".+-:Z".utf8).contains($0)
  }
}
