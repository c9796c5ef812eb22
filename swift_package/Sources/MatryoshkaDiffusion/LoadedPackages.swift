import DiffusionCore
import Synchronization

/// A runtime that knows which of its packages are loaded, so that they are not taken for memory that
/// is still needed.
final class LoadedPackages: PackageRuntime {
  private let manifest: Manifest
  private let inner: any PackageRuntime
  private let loaded = Mutex<Set<String>>([])

  init(_ inner: any PackageRuntime, of manifest: Manifest) {
    (self.inner, self.manifest) = (inner, manifest)
  }

  var bundleDigest: String? { inner.bundleDigest }

  /// The part of the predicted peak that is taken up already, in bytes. With everything loaded it is
  /// the whole peak, whatever the packages really take: they have shown that they fit.
  var bytes: Int {
    let names = loaded.withLock { $0 }
    let packages = manifest.packages.filter { names.contains($0.name) }
    let weights = Dictionary(packages.map { ($0.path, $0.bytes) }) { first, _ in first }
    if weights.count == Set(manifest.packages.map(\.path)).count { return manifest.peakMemory.resident }
    let largest = packages.map(\.activationBytes).max() ?? 0
    return min(weights.values.reduce(largest, +), manifest.peakMemory.resident)
  }

  /// Keeps one function loaded among those that share weights, as the predicted peaks assume.
  func load(_ package: Manifest.Package) async throws {
    for other in manifest.packages where other.path == package.path && other != package {
      await unload(other)
    }
    try await inner.load(package)
    _ = loaded.withLock { $0.insert(package.name) }
  }

  func unload(_ package: Manifest.Package) async {
    await inner.unload(package)
    _ = loaded.withLock { $0.remove(package.name) }
  }

  func run(
    _ package: Manifest.Package, context: Int, giving values: [String: Tensor]
  ) async throws {
    try await inner.run(package, context: context, giving: values)
  }

  func value(_ name: String, context: Int) async throws -> Tensor {
    try await inner.value(name, context: context)
  }

  func release() async {
    await inner.release()
    loaded.withLock { $0 = [] }
  }
}
