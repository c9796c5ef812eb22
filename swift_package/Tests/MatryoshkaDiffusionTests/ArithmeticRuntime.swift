import DiffusionCore

/// Runs the packages of ``SmallBundle`` by arithmetic, and keeps count of what is loaded.
actor ArithmeticRuntime: PackageRuntime {
  private(set) var loaded: Set<String> = []
  private(set) var mostLoaded = 0
  private(set) var runs = 0
  private(set) var releases = 0
  private var contexts: [Int: [String: Tensor]] = [:]
  /// The number of runs by name of the package.
  private(set) var runsByName: [String: Int] = [:]
  /// The number of positions seen, of every `text_seen` that was given.
  private(set) var seen: [Int] = []
  nonisolated let bundleDigest: String?
  private let beforeLoad: @Sendable () async throws -> Void
  private let beforeRun: @Sendable (Int) async throws -> Void

  /// - Parameters:
  ///   - bundleDigest: of the bundle that it pretends to run.
  ///   - beforeRun: called with the number of the run, from 1.
  ///   - beforeLoad: called before every package that is loaded.
  init(
    bundleDigest: String? = nil,
    beforeRun: @escaping @Sendable (Int) async throws -> Void = { _ in },
    beforeLoad: @escaping @Sendable () async throws -> Void = {}
  ) {
    (self.bundleDigest, self.beforeLoad, self.beforeRun) = (bundleDigest, beforeLoad, beforeRun)
  }

  var isEmpty: Bool { loaded.isEmpty && contexts.isEmpty }

  func load(_ package: Manifest.Package) async throws {
    if !loaded.contains(package.name) { try await beforeLoad() }
    loaded.insert(package.name)
    mostLoaded = max(mostLoaded, loaded.count)
  }

  func unload(_ package: Manifest.Package) { loaded.remove(package.name) }

  func run(_ package: Manifest.Package, context: Int, giving values: [String: Tensor]) async throws {
    runs += 1
    runsByName[package.name, default: 0] += 1
    if let given = values["text_seen"] { seen.append(Int(given.values.reduce(0, +))) }
    try await beforeRun(runs)
    guard loaded.contains(package.name) else {
      throw MatryoshkaError.packageFailed(package: package.name, reason: "is not loaded")
    }
    var known = contexts[context, default: [:]]
    known.merge(values) { $1 }
    let inputs = try package.inputs.map { input -> Tensor in
      guard let tensor = known[input.name], tensor.shape == input.shape else {
        throw MatryoshkaError.packageFailed(package: package.name, reason: "lacks \(input.name)")
      }
      return tensor
    }
    let mean = inputs.map { $0.values.reduce(0, +) / Float($0.values.count) }.reduce(0, +)
    for output in package.outputs {
      let like = inputs.first { $0.shape == output.shape }
      let count = output.shape.reduce(1, *)
      let base = like?.values ?? [Float](repeating: 0, count: count)
      known[output.name] = try Tensor(shape: output.shape, values: base.map { 0.3 * $0 + 0.1 * mean })
    }
    contexts[context] = known
  }

  func value(_ name: String, context: Int) throws -> Tensor {
    guard let tensor = contexts[context]?[name] else {
      throw MatryoshkaError.packageFailed(package: name, reason: "was not computed")
    }
    return tensor
  }

  func release() {
    releases += 1
    (loaded, contexts) = ([], [:])
  }
}
