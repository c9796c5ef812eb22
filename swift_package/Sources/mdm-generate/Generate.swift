import Foundation
import MatryoshkaDiffusion

/// `mdm-generate BUNDLE ...`: makes one picture per seed.
struct Generate {
  let options: CommandLineOptions
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
    for seed in options.seeds {
      var request = options.request
      request.seed = seed
      if let finished = try await picture(request, says: files.isEmpty) {
        files += try save(finished, seed)
      }
    }
    return files
  }

  /// Makes one picture; nil if the run was stopped for a snapshot.
  ///
  /// - Parameter says: whether remarks are said; those of the next seeds would be the same.
  private func picture(_ request: PictureRequest, says: Bool) async throws -> Finished? {
    var said = Set<String>()
    let previews: Previews = options.previews == nil ? .none : .all
    let stream =
      if let path = options.resume {
        pipeline.resume(try snapshot(path), previews: previews)
      } else {
        pipeline.generate(request, previews: previews)
      }
    do {
      for try await step in stream {
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
    for picture in step.previews {
      try write(picture.png(), "\(folder)/\(picture.width)_\(step.index).png")
    }
  }

  private func save(_ finished: Finished, _ seed: UInt32) throws -> [String] {
    var files: [String] = []
    if let raw = options.raw {
      let tensors = finished.values.map { (name: "picture_\($0.shape[3])", tensor: $0) }
      try write(TensorFile.contents(tensors), raw)
      files.append(raw)
    }
    if let out = options.out {
      let path = options.seeds.count == 1 ? out : "\(out)/\(seed).png"
      if options.seeds.count > 1 { try makeFolder(out) }
      try write(finished.picture.png(), path)
      files.append(path)
    }
    return files
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
