#if canImport(CoreML) || COREML_SHIM
  import DiffusionCore
  import Foundation

  #if canImport(CoreML)
    import CoreML
  #else
    import CoreMLShim
  #endif

  /// Packages compiled once on this device. Core ML caches by path the data that it derives from a
  /// compiled model, so each model keeps its path as long as bundle and system stay the same.
  public struct CompiledModels: Sendable {
    /// Compiles a package and returns the compiled model's temporary location.
    public typealias Compile = @Sendable (URL) async throws -> URL

    /// The bundle whose packages are compiled.
    public let bundle: BundleFolder
    private let base: URL
    private let precompiled: URL?
    private let folder: URL
    private let compile: Compile

    /// - Parameters:
    ///   - base: a folder that belongs to the app, such as one in Application Support.
    ///   - precompiled: a folder that `mdm-generate compile` made from this bundle, which saves the
    ///     device the work; nil: the packages are compiled here.
    ///   - system: identifies the system's build. A new build invalidates the compiled models.
    ///   - compile: compiles one package; `MLModel.compileModel(at:)` by default.
    public init(
      bundle: BundleFolder, base: URL, precompiled: URL? = nil,
      system: String = ProcessInfo.processInfo.operatingSystemVersionString,
      compile: @escaping Compile = { try await MLModel.compileModel(at: $0) }
    ) {
      (self.bundle, self.base, self.compile) = (bundle, base, compile)
      self.precompiled = precompiled
      let build = system.map { $0.isLetter || $0.isNumber ? $0 : "-" }
      folder = base.appending(path: "\(bundle.manifest.digest.prefix(16))-\(String(build))")
    }

    /// The compiled model of a package, compiled now if necessary. Functions that share a package file
    /// share its compiled model.
    public func url(of package: Manifest.Package) async throws -> URL {
      if let precompiled { return try CompiledBundle.url(of: package, of: bundle, in: precompiled) }
      let place = folder.appending(path: CompiledBundle.name(of: package))
      if FileManager.default.fileExists(atPath: place.path) { return place }
      try makeFolder()
      try checkDisk(package.bytes)
      let made: URL
      do {
        made = try await compile(bundle.url.appending(path: package.path))
      } catch {
        throw MatryoshkaError.packageFailed(package: package.name, reason: "cannot be compiled")
      }
      do {
        try Task.checkCancellation()
        try FileManager.default.moveItem(at: made, to: place)
      } catch {
        try? FileManager.default.removeItem(at: made)
        if error is CancellationError { throw error }
        throw MatryoshkaError.fileSystem(path: place.path, reason: "cannot be written")
      }
      return place
    }

    /// Compiles all packages, one at a time. It can be cancelled between packages and continued later.
    ///
    /// - Parameter progress: receives the number of packages done and the total.
    public func prepare(progress: @Sendable (Int, Int) -> Void = { _, _ in }) async throws {
      let packages = bundle.manifest.packages.onePerFile
      for (index, package) in packages.enumerated() {
        progress(index, packages.count)
        try Task.checkCancellation()
        _ = try await url(of: package)
      }
      progress(packages.count, packages.count)
      removeOthers()
    }

    /// Removes models in the same base folder that were compiled for other systems or bundles.
    public func removeOthers() {
      let others = (try? FileManager.default.contentsOfDirectory(at: base, includingPropertiesForKeys: nil)) ?? []
      for other in others where other.lastPathComponent != folder.lastPathComponent {
        try? FileManager.default.removeItem(at: other)
      }
    }

    private func makeFolder() throws {
      do {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        #if canImport(Darwin)
          var values = URLResourceValues()
          values.isExcludedFromBackup = true
          var place = folder
          try place.setResourceValues(values)
        #endif
      } catch {
        throw MatryoshkaError.fileSystem(path: folder.path, reason: "cannot be made")
      }
    }

    /// A compiled model is about as large as its package; twice that must be free.
    private func checkDisk(_ bytes: Int) throws {
      let attributes = try? FileManager.default.attributesOfFileSystem(forPath: folder.path)
      guard let free = (attributes?[.systemFreeSize] as? NSNumber)?.int64Value else { return }
      guard free >= 2 * Int64(bytes) else {
        throw MatryoshkaError.fileSystem(
          path: folder.path, reason: "has \(free >> 20) MB left, but \(bytes >> 19) MB are needed")
      }
    }
  }
#endif
