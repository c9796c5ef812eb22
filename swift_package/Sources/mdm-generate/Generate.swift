import Foundation
import MatryoshkaDiffusion

/// `mdm-generate BUNDLE ...`: makes one picture or clip per seed.
struct Generate {
  let options: CommandLineOptions
  let choice: RuntimeChoice
  let pipeline: Pipeline

  func run() async throws {
    try refuseExisting()
    let files: [String]
    do {
      files = try await pictures()
    } catch {
      // Cancelling keeps packages for a next picture, but here there is none.
      await pipeline.release()
      throw error
    }
    await pipeline.release()
    try Output.put(options.isJSON ? Report(files: files) : nil, files.joined(separator: "\n"))
  }

  private static let asked = "--snapshot-after"

  private struct Report: Encodable {
    let files: [String]
  }

  private func pictures() async throws -> [String] {
    var files: [String] = []
    let snapshot = try options.resume.map { try self.snapshot($0) }
    for seed in options.seeds {
      var request = snapshot?.request ?? options.request
      if snapshot == nil { request.seed = seed }
      let previews: Previews = options.previews == nil ? .none : .all
      let steps =
        if let snapshot {
          pipeline.resume(snapshot, previews: previews)
        } else {
          pipeline.make(request, previews: previews)
        }
      if let finished = try await picture(steps, says: files.isEmpty) {
        files += try save(finished, request, seed)
      }
    }
    return files
  }

  /// Reads the steps of one picture or clip; nil if the run was stopped for a snapshot.
  ///
  /// - Parameter says: whether remarks are said; those of the next seeds would be the same.
  private func picture(_ steps: Steps, says: Bool) async throws -> Finished? {
    var said = Set<String>()
    do {
      for try await step in steps {
        for remark in step.remarks where says && said.insert(remark).inserted { Output.say(remark) }
        if !options.isQuiet { Output.say("step \(step.index + 1) of \(step.total)") }
        try save(step)
        if let finished = step.finished { return finished }
        if let wanted = options.snapshotAfter, step.index + 1 >= wanted {
          pipeline.interrupt(reason: Generate.asked)
        }
      }
    } catch MatryoshkaError.interrupted(let snapshot, let reason) {
      if let path = options.snapshot { try write(JSONEncoder().encode(snapshot), path) }
      // A requested stop is not a failure. A server that died is one, with or without a snapshot.
      guard options.snapshot != nil, reason == Generate.asked else {
        throw MatryoshkaError.interrupted(snapshot, reason: reason)
      }
    }
    try Task.checkCancellation()
    return nil
  }

  private func snapshot(_ path: String) throws -> Snapshot {
    do {
      return try JSONDecoder().decode(Snapshot.self, from: Data(contentsOf: URL(filePath: path)))
    } catch {
      throw MatryoshkaError.fileSystem(path: path, reason: "is not a readable snapshot (\(error.cause))")
    }
  }

  private func save(_ step: Step) throws {
    guard let folder = options.previews else { return }
    try makeFolder(folder)
    for (level, picture) in step.previews.enumerated() {
      let file = step.clips.isEmpty ? picture.png() : step.clips[level].apng()
      try write(file, "\(folder)/\(picture.width)_\(step.index).png")
    }
  }

  private func save(
    _ finished: Finished, _ request: PictureRequest, _ seed: UInt32
  ) throws -> [String] {
    var files: [String] = []
    if let raw = options.raw {
      let tensors = finished.values.map { (name: "picture_\($0.shape[3])", tensor: $0) }
      try write(TensorFile.contents(tensors), raw)
      files.append(raw)
    }
    if let out = options.out {
      let path = options.seeds.count == 1 ? out : "\(out)/\(seed).png"
      if options.seeds.count > 1 { try makeFolder(out) }
      let recipe = recipe(of: request).text
      try write(finished.clip?.apng(text: recipe) ?? finished.picture.png(text: recipe), path)
      files.append(path)
    }
    return files
  }

  private func recipe(of request: PictureRequest) -> Recipe {
    Recipe(
      of: request, bundle: pipeline.bundle,
      backend: choice.backend(for: pipeline.bundle.manifest.format),
      precision: choice == .pipe ? options.precision : "fp16")
  }

  private func refuseExisting() throws {
    guard options.out != nil || options.raw != nil else {
      throw MatryoshkaError.invalidArgument(name: "out", reason: "name the file for the picture")
    }
    for path in [options.out, options.raw, options.snapshot].compactMap({ $0 })
    where !options.overwrites && FileManager.default.fileExists(atPath: path) {
      throw MatryoshkaError.fileSystem(path: path, reason: "already exists; add --overwrite")
    }
  }

  private func makeFolder(_ path: String) throws {
    do {
      try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    } catch {
      throw MatryoshkaError.fileSystem(path: path, reason: "cannot be made (\(error.cause))")
    }
  }

  private func write(_ bytes: some Sequence<UInt8>, _ path: String) throws {
    do {
      try Data(bytes).write(to: URL(filePath: path), options: .atomic)
    } catch {
      throw MatryoshkaError.fileSystem(path: path, reason: "cannot be written (\(error.cause))")
    }
  }
}
