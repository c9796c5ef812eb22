import Foundation

/// An opened bundle: a folder that matches its manifest.
public struct BundleFolder: Sendable {
  /// The location of the folder.
  public let url: URL
  /// The bundle's description of itself.
  public let manifest: Manifest
  /// The noise schedule of every level.
  public let schedule: NoiseSchedule
  private let tables: TensorFile

  /// Opens a bundle and checks its manifest, its listing, its wiring and its tables.
  ///
  /// - Parameter checkingHashes: also compare every file with its SHA-256. Do this once, when the
  ///   bundle is installed or downloaded (see ``verify(url:stamp:progress:)``), not at each launch.
  public init(url: URL, checkingHashes: Bool = false) throws {
    self.url = url
    manifest = try Manifest(parsing: BundleFolder.contents(url.appending(path: "manifest.json")))
    try manifest.checkWiring()
    try BundleFolder.checkListing(url, manifest)
    if checkingHashes { try BundleFolder.checkHashes(url, manifest) }
    try BundleFolder.checkPrograms(url, manifest)
    tables = try TensorFile(url: url.appending(path: manifest.tables))
    schedule = try BundleFolder.schedule(tables, manifest)
    try BundleFolder.checkEmbeddings(tables, manifest)
  }

  /// Checks every hash and writes the digest to `stamp`. If `stamp` already holds the digest, no hash
  /// is checked. Keep the stamp outside the bundle, which may not contain unlisted files.
  ///
  /// It returns when everything is hashed, so an app calls ``verify(url:stamp:progress:)`` instead.
  public static func stampIfIntact(url: URL, stamp: URL) throws {
    try stampIfIntact(url, stamp) { _, _ in }
  }

  /// The same away from the caller's actor, so that a view that waits for it stays alive. It can be
  /// cancelled between pieces of a megabyte, and then writes no stamp.
  ///
  /// - Parameter progress: receives the number of bytes that are hashed and the total, not on the
  ///   caller's actor.
  public static func verify(
    url: URL, stamp: URL, progress: @Sendable (Int, Int) -> Void = { _, _ in }
  ) async throws {
    try stampIfIntact(url, stamp) { done, total in
      try Task.checkCancellation()
      progress(done, total)
    }
  }

  private static func stampIfIntact(
    _ url: URL, _ stamp: URL, _ progress: (Int, Int) throws -> Void
  ) throws {
    let bundle = try BundleFolder(url: url)
    let digest = Data(bundle.manifest.digest.utf8)
    if let known = try? Data(contentsOf: stamp), known == digest { return }
    try checkHashes(url, bundle.manifest, progress)
    do {
      try digest.write(to: stamp, options: .atomic)
    } catch {
      throw MatryoshkaError.fileSystem(path: stamp.path, reason: "cannot be written (\(error.cause))")
    }
  }

  /// Copies a bundle to the place where the app opens it, and checks every hash of the copy. The folder
  /// appears there complete or not at all, so nothing ever opens half of it: Core AI would keep what it
  /// derives from half a package. It can be cancelled, and then leaves nothing.
  ///
  /// - Parameter progress: receives the number of bytes that are hashed and the total, not on the
  ///   caller's actor.
  public static func install(
    from source: URL, at place: URL, progress: @Sendable (Int, Int) -> Void = { _, _ in }
  ) async throws {
    let files = FileManager.default
    guard !files.fileExists(atPath: place.path) else {
      throw MatryoshkaError.fileSystem(path: place.path, reason: "already exists; choose another place")
    }
    let parent = place.deletingLastPathComponent()
    let partial = parent.appending(path: ".\(place.lastPathComponent).\(UUID().uuidString).partial")
    defer { try? files.removeItem(at: partial) }
    do {
      try files.createDirectory(at: parent, withIntermediateDirectories: true)
      try files.copyItem(at: source, to: partial)
    } catch {
      throw MatryoshkaError.fileSystem(path: place.path, reason: "cannot be written (\(error.cause))")
    }
    try checkHashes(partial, BundleFolder(url: partial).manifest) { done, total in
      try Task.checkCancellation()
      progress(done, total)
    }
    do {
      try files.moveItem(at: partial, to: place)
    } catch {
      throw MatryoshkaError.fileSystem(path: place.path, reason: "cannot be written (\(error.cause))")
    }
  }

  /// Refuses a bundle whose packages another framework runs.
  package func check(isFor format: Manifest.Format) throws {
    guard manifest.format != format else { return }
    let reason =
      switch manifest.format {
      case .coreml: "holds Core ML packages; run them with CoreMLRuntime of DiffusionCoreML"
      case .coreai:
        "holds Core AI packages; run them with CoreAIRuntime of DiffusionCoreAI, on iOS 27 or macOS 27"
      }
    throw MatryoshkaError.invalidArgument(name: "bundle", reason: reason)
  }

  /// The model's licence and origin, from the manifest's provenance.
  public var licenses: [String] {
    let provenance = manifest.provenance
    return [
      provenance.license.map { "Licence: \($0)" },
      provenance.source.map { "Source: \($0)" },
      provenance.baseModel.map { "Made from: \($0)" },
      provenance.notes,
    ].compactMap { $0 }
  }

  /// Pixels of each level, highest first.
  public var sides: [Int] { manifest.levels.map(\.side) }

  /// The target of a student's jump, and its guidance weight.
  package struct Jump: Sendable {
    package let target: Int
    package let weight: Double

    package init(target: Int, weight: Double) { (self.target, self.weight) = (target, weight) }
  }

  /// A level's time embedding for the number that the network receives: (1, width).
  ///
  /// - Parameter jump: for a student; nil for every other model.
  package func timeEmbedding(
    _ level: Manifest.Level, _ time: Int, jump: Jump? = nil
  ) throws -> Tensor {
    var row = try tables.rows(level.time, time..<time + 1)
    if let jump, let student = manifest.student, let targets = level.targetTime {
      guard let landing = student.targets.firstIndex(of: jump.target) else {
        throw MatryoshkaError.invalidArgument(
          name: "steps", reason: "the student cannot jump to \(jump.target)")
      }
      // The two are summed before the time is added, so that Swift and Python round alike.
      var told = try tables.rows(targets, landing..<landing + 1)
      if let weights = level.guidance, let place = try student.row(ofWeight: jump.weight) {
        told = zip(told, try tables.rows(weights, place..<place + 1)).map { $0 + $1 }
      }
      row = zip(row, told).map { $0 + $1 }
    }
    return try Tensor(shape: [1, row.count], values: row)
  }

  /// The tokenizer; nil if the bundle has none.
  package func tokenizer() throws -> UnigramTokenizer? {
    guard let text = manifest.text, let path = text.tokenizer else { return nil }
    let bytes = try BundleFolder.contents(url.appending(path: path))
    if let expected = text.tokenizerSHA256, SHA256.hex(of: bytes) != expected {
      throw MatryoshkaError.damagedBundle(file: path, reason: "is not the tokenizer that the manifest names")
    }
    return try UnigramTokenizer(model: bytes, nullPrompt: text.nullPrompt)
  }

  /// SHA-256 of the text encoder that feature caches are made with; nil if none is recorded.
  public func encoderSHA256() throws -> String? {
    let document = try JSON(parsing: BundleFolder.contents(url.appending(path: manifest.config)))
    guard case .object(let members) = document,
      case .object(let text) = members.first(where: { $0.key == "text" })?.value,
      case .string(let hash) = text.first(where: { $0.key == "encoder_sha256" })?.value
    else { return nil }
    return hash
  }

  private static func contents(_ url: URL) throws -> [UInt8] {
    let size: Int
    let data: Data
    do {
      let values = try url.resourceValues(forKeys: [.fileSizeKey, .isRegularFileKey])
      size = values.isRegularFile == true ? values.fileSize ?? .max : .max
      data = size <= Manifest.maximumBytes ? try Data(contentsOf: url) : Data()
    } catch {
      throw MatryoshkaError.fileSystem(
        path: url.path, reason: "is not a readable file of at most 16 MiB (\(error.cause))")
    }
    guard size <= Manifest.maximumBytes else {
      throw MatryoshkaError.fileSystem(path: url.path, reason: "is not a readable file of at most 16 MiB")
    }
    return [UInt8](data)
  }

  private static func schedule(_ tables: TensorFile, _ manifest: Manifest) throws -> NoiseSchedule {
    let schedule = try NoiseSchedule(
      base: tables.doubles(manifest.alphaBar),
      tables: manifest.levels.map { try tables.doubles($0.alphaBar) })
    guard schedule.numSteps == manifest.numSteps else {
      throw MatryoshkaError.damagedBundle(
        file: manifest.tables, reason: "its tables have \(schedule.numSteps) steps")
    }
    return schedule
  }

  /// Checks that every level has its tables of embeddings, with the manifest's numbers of rows.
  private static func checkEmbeddings(_ tables: TensorFile, _ manifest: Manifest) throws {
    for level in manifest.levels {
      let width = tables.entries[level.time]?.shape.last
      var expected = [(level.time, manifest.numSteps)]
      if let student = manifest.student {
        expected += level.targetTime.map { [($0, student.targets.count)] } ?? []
        expected += level.guidance.map { [($0, student.weights.count)] } ?? []
      }
      for (name, rows) in expected {
        guard let shape = tables.entries[name]?.shape, shape.count == 2, shape[0] == rows,
          shape[1] == width
        else {
          throw MatryoshkaError.damagedBundle(
            file: manifest.tables, reason: "lacks the table \(name) with \(rows) rows")
        }
      }
    }
  }

  private static func checkListing(_ url: URL, _ manifest: Manifest) throws {
    var listed: [String: Int] = [:]
    for file in manifest.files {
      guard listed.updateValue(file.size, forKey: file.path) == nil else {
        throw MatryoshkaError.damagedBundle(file: file.path, reason: "is listed twice")
      }
    }
    for (path, size) in try present(url) where path != "manifest.json" {
      guard let expected = listed.removeValue(forKey: path) else {
        throw MatryoshkaError.damagedBundle(file: path, reason: "is not listed in the manifest")
      }
      guard size == expected else {
        let pointer = GitPointer.isFile(url.appending(path: path))
        throw MatryoshkaError.damagedBundle(
          file: path, reason: pointer ? GitPointer.reason : "has \(size) bytes, not \(expected)")
      }
    }
    if let missing = listed.keys.min() {
      throw MatryoshkaError.damagedBundle(file: missing, reason: "is missing")
    }
  }

  /// An .aimodel states the hash of its program, which Core AI does not compare.
  private static func checkPrograms(_ url: URL, _ manifest: Manifest) throws {
    guard manifest.format == .coreai else { return }
    let hashes = Dictionary(manifest.files.map { ($0.path, $0.sha256) }) { first, _ in first }
    for package in manifest.packages.onePerFile {
      let (program, stated) = ("\(package.path)/main.mlirb", "\(package.path)/main.hash")
      guard let hash = hashes[program], hashes[stated] != nil,
        try hex(contents(url.appending(path: stated))) == hash
      else {
        throw MatryoshkaError.damagedBundle(file: stated, reason: "is not the SHA-256 of its main.mlirb")
      }
    }
  }

  private static func hex(_ bytes: [UInt8]) -> String {
    bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
  }

  /// Whether Finder, Windows, an archive tool or a disk station left it there; Python has the same
  /// list.
  private static func isSystemFile(_ name: String) -> Bool {
    name.hasPrefix("._") || systemFiles.contains(name.lowercased())
  }

  private static let systemFiles: Set = [
    ".ds_store", ".localized", ".spotlight-v100", ".trashes", ".fseventsd", "icon\r",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir",
    ".appledouble", ".apdisk", "$recycle.bin", "system volume information",
  ]

  /// All files of the folder with their sizes. Refuses links and devices.
  private static func present(_ url: URL) throws -> [(String, Int)] {
    let keys: [URLResourceKey] = [
      .isRegularFileKey, .isDirectoryKey, .isSymbolicLinkKey, .fileSizeKey,
    ]
    var found: [(String, Int)] = []
    var pending = [""]
    while let folder = pending.popLast() {
      let place = folder.isEmpty ? url : url.appending(path: folder)
      let entries: [URL]
      do {
        entries = try FileManager.default.contentsOfDirectory(
          at: place, includingPropertiesForKeys: keys)
      } catch {
        throw MatryoshkaError.fileSystem(path: place.path, reason: "cannot be read (\(error.cause))")
      }
      for entry in entries where !isSystemFile(entry.lastPathComponent) {
        let path = folder.isEmpty ? entry.lastPathComponent : "\(folder)/\(entry.lastPathComponent)"
        let values = try? entry.resourceValues(forKeys: Set(keys))
        if values?.isSymbolicLink != true, values?.isDirectory == true {
          pending.append(path)
        } else if values?.isSymbolicLink != true, values?.isRegularFile == true {
          found.append((path, values?.fileSize ?? -1))
        } else {
          throw MatryoshkaError.damagedBundle(file: path, reason: "is not a plain file")
        }
        guard found.count <= 10_001 else {
          throw MatryoshkaError.damagedBundle(file: url.path, reason: "contains too many files")
        }
      }
    }
    return found
  }

  private static func checkHashes(
    _ url: URL, _ manifest: Manifest, _ progress: (Int, Int) throws -> Void = { _, _ in }
  ) throws {
    let total = manifest.files.map(\.size).reduce(0, +)
    var done = 0
    for file in manifest.files {
      let found = try SHA256.hex(ofFile: url.appending(path: file.path)) { count in
        done += count
        try progress(done, total)
      }
      guard found == file.sha256 else {
        throw MatryoshkaError.damagedBundle(
          file: file.path, reason: "is not the file that the manifest lists")
      }
    }
  }
}
