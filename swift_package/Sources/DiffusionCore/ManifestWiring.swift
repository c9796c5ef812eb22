/// Names of the features that the host provides or reads.
package enum FeatureName {
  package static let tokenIDs = "token_ids"
  package static let textMask = "text_mask"
  package static let textSeen = "text_seen"
  package static let textFeatures = "text_features"
  package static let pooled = "pooled"
}

extension Manifest {
  /// Checks the rules that the schema cannot express: this version can run the bundle, every path stays inside the bundle, every input
  /// comes from the host or an earlier package, and every level has a prediction.
  package func checkWiring() throws {
    try checkThatItRuns()
    try checkFormat()
    try checkPaths()
    try checkStudent()
    let sides = levels.map(\.side)
    guard zip(sides, sides.dropFirst()).allSatisfy({ $0 > $1 }) else {
      throw MatryoshkaError.invalidManifest(
        field: "levels", reason: "must go from the largest side down, got \(sides)")
    }
    try checkVideo()
    guard golden.times.allSatisfy({ $0 <= numSteps }) else {
      throw MatryoshkaError.invalidManifest(
        field: "golden.times", reason: "names steps that the tables lack")
    }
    var known: Set = [FeatureName.tokenIDs, FeatureName.textMask, FeatureName.textFeatures]
    if text?.padding == .longest { known.insert(FeatureName.textSeen) }
    known.formUnion(levels.flatMap { [$0.image, $0.temb] })
    var names: Set<String> = []
    for package in packages {
      guard names.insert(package.name).inserted else {
        throw MatryoshkaError.invalidManifest(
          field: "packages", reason: "lists \(package.name) twice")
      }
      for input in package.inputs where !known.contains(input.name) {
        throw MatryoshkaError.invalidManifest(
          field: "packages.\(package.name)",
          reason: "takes \(input.name), which nothing before it provides")
      }
      known.formUnion(package.outputs.map(\.name))
    }
    try checkFunctions()
    let wanted = levels.map(\.prediction) + (text == nil ? [] : [FeatureName.pooled])
    for name in wanted where !known.contains(name) {
      throw MatryoshkaError.invalidManifest(
        field: "packages", reason: "lists no package that puts out \(name)")
    }
  }

  /// The packages of a phase, in order, if sampling stops at a side; nil: the largest side.
  package func packages(of phase: Phase, upTo side: Int? = nil) -> [Package] {
    packages.filter { $0.phase == phase && runs($0, upTo: side) }
  }

  /// The function name that opens a package if several share one file; nil: it has one program.
  package func function(of package: Package) -> String? {
    packages.filter { $0.path == package.path }.count > 1 ? package.name : nil
  }

  /// In a multifunction bundle a single package runs; otherwise the packages of larger sides are skipped.
  private func runs(_ package: Package, upTo largest: Int?) -> Bool {
    guard let side = package.side else { return true }
    if layout == .multifunction { return side == largest ?? levels[0].side }
    return largest.map { side <= $0 } ?? true
  }

  private func checkFunctions() throws {
    guard layout == .multifunction else { return }
    let stops = packages.filter { $0.phase == .step }.map { $0.side ?? 0 }.sorted(by: >)
    guard stops == levels.map(\.side) else {
      throw MatryoshkaError.invalidManifest(
        field: "packages", reason: "must have one function per side, got \(stops)")
    }
  }

  /// Refuses what a manifest can say but this version has no code for.
  private func checkThatItRuns() throws {
    let used = [("sizes", !sizes.isEmpty), ("adapters", !adapters.isEmpty)]
    if let (name, _) = used.first(where: \.1) {
      throw MatryoshkaError.newerBundle(
        field: name, reason: "is something that this version cannot run")
    }
  }

  private func checkFormat() throws {
    for package in packages where !package.path.hasSuffix(format.suffix) {
      throw MatryoshkaError.invalidManifest(
        field: "packages", reason: "lists \(package.path), but the format is \(format)")
    }
  }

  private func checkPaths() throws {
    let named = [tables, config, golden.path] + [text?.tokenizer].compactMap { $0 }
    let listed = Set(files.map(\.path))
    for path in named + files.map(\.path) + packages.map(\.path) {
      let parts = path.split(separator: "/", omittingEmptySubsequences: false)
      let leadsOut = parts.contains { $0.isEmpty || $0 == "." || $0 == ".." }
      guard !leadsOut, !path.unicodeScalars.contains(where: { "\\\0:".unicodeScalars.contains($0) })
      else {
        throw MatryoshkaError.invalidManifest(
          field: "files", reason: "names \(path.prefix(80)), which leads out of the bundle")
      }
    }
    for path in named where !listed.contains(path) {
      throw MatryoshkaError.invalidManifest(
        field: "files", reason: "does not list \(path.prefix(80))")
    }
    for package in packages where !listed.contains(where: { $0.hasPrefix(package.path + "/") }) {
      throw MatryoshkaError.invalidManifest(
        field: "files", reason: "lists nothing of \(package.path)")
    }
  }
}

extension [Manifest.Package] {
  /// The first function of each package file.
  package var onePerFile: [Manifest.Package] {
    var seen: Set<String> = []
    return filter { seen.insert($0.path).inserted }
  }
}
