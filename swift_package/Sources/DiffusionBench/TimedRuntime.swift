import DiffusionCore

/// Forwards every call and records the seconds of every load and every run.
public actor TimedRuntime: PackageRuntime {
  private let inner: any PackageRuntime
  private var loaded: Set<String> = []
  /// Seconds by package; the first load is cold.
  private(set) var loads: [String: [Double]] = [:]
  /// Seconds by package, since the last ``forgetRuns()``.
  private(set) var runs: [String: [Double]] = [:]

  /// Creates a runtime that times `inner`.
  public init(_ inner: any PackageRuntime) { self.inner = inner }

  /// The digest of the inner runtime's bundle.
  public nonisolated var bundleDigest: String? { inner.bundleDigest }

  /// Forgets the recorded runs, so that only warm runs follow.
  func forgetRuns() { runs = [:] }

  /// Loads a package unless it is loaded already.
  public func load(_ package: Manifest.Package) async throws {
    guard !loaded.contains(package.name) else { return }
    let taken = try await seconds { try await inner.load(package) }
    // Not before: a load that fails is no load, and must be tried again.
    loaded.insert(package.name)
    loads[package.name, default: []].append(taken)
  }

  /// Releases a package, so that its next load is timed again.
  public func unload(_ package: Manifest.Package) async {
    loaded.remove(package.name)
    await inner.unload(package)
  }

  /// Runs a package and records the seconds.
  public func run(_ package: Manifest.Package, context: Int, giving values: [String: Tensor]) async throws {
    let taken = try await seconds { try await inner.run(package, context: context, giving: values) }
    runs[package.name, default: []].append(taken)
  }

  /// Returns a value of the inner runtime.
  public func value(_ name: String, context: Int) async throws -> Tensor {
    try await inner.value(name, context: context)
  }

  /// Releases everything.
  public func release() async {
    loaded = []
    await inner.release()
  }

  private func seconds(_ work: () async throws -> Void) async rethrows -> Double {
    let clock = ContinuousClock()
    let start = clock.now
    try await work()
    return (clock.now - start).inSeconds
  }
}

extension Duration {
  /// The duration in seconds.
  var inSeconds: Double { Double(components.seconds) + Double(components.attoseconds) * 1e-18 }
}
